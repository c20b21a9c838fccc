"""One benchmark cluster: control plane, nodes, agents, operator, and the driver's watch over all of it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale import audit, usage
from scale.agent_process import AgentProcess
from scale.jobset import JOBSET, JobSetController
from scale.plane import OPERATOR_NAMESPACE, MeasuredPlane, make_plane, master_key, operator_user, prepare
from scale.progress import Progress
from scale.replicas import Replica
from scale.subjects import SUBJECTS, JobSets, Subject
from scale.tracker import RunSeen, Tracker
from scale.usage import Window
from videotrain.controlplane.controllers import installation
from videotrain.controlplane.kwok import node_names
from videotrain_operator.kube.client import KubeClient, connect

POLL_SECONDS = 1.0
"""Between looks at what no watch of ours tells."""
REST_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """What is measured."""

    runs: int
    pods: int
    nodes: int
    profile: str
    peer: str
    agents: bool
    trials: int
    kills: int
    timeout: float
    start_seconds: float
    step_seconds: float
    quiet_seconds: float
    keep: bool


class Bench:
    """What the scenarios work with."""

    def __init__(
        self,
        options: Options,
        plane: MeasuredPlane,
        client: KubeClient,
        subject: Subject,
        tracker: Tracker,
        agents: AgentProcess | None,
        replicas: list[Replica],
        peer: JobSetController | None,
        progress: Progress,
    ) -> None:
        self.options, self.plane, self.client = options, plane, client
        self.subject, self.tracker, self.agents = subject, tracker, agents
        self.replicas, self.peer, self.progress = replicas, peer, progress
        self._made = 0

    @property
    def begins(self) -> str:
        """The mark from which training can go on: ours when all agents are told, others' when all pods run."""
        return "roster_at" if self.agents is not None else "running_at"

    def names(self, count: int) -> list[str]:
        """Names of new runs."""
        self._made += count
        return [f"run-{number}" for number in range(self._made - count, self._made)]

    def window(self) -> Window:
        """A stretch of time that begins now."""
        return Window(self._cpu)

    def _cpu(self) -> dict[str, float]:
        parts = {item.name: usage.cpu_seconds(item.pid) for item in self.plane.components if item.pid is not None}
        if self.replicas:
            parts["operator"] = sum(replica.cpu_seconds() for replica in self.replicas)
        if self.peer is not None:
            parts["operator"] = self.peer.cpu_seconds()
        parts["driver"] = usage.cpu_seconds(os.getpid())
        if self.agents is not None:
            parts["driver"] += usage.cpu_seconds(self.agents.pid)
        return parts

    async def submit(self, names: Sequence[str], *, elastic: bool = False) -> list[RunSeen]:
        """Create runs, all at once; returns when the API server has accepted them."""
        return list(await asyncio.gather(*(self._submit(name, elastic=elastic) for name in names)))

    async def _submit(self, name: str, *, elastic: bool) -> RunSeen:
        run = self.tracker.expect(name, self.options.pods)
        await self.subject.create(self.client, name, self.options.pods, elastic=elastic)
        return run

    async def reach(self, mark: str, what: str) -> float:
        """Wait until every run has reached a mark of the tracker."""
        wanted = len(self.tracker.runs)

        def there() -> bool:
            done = self.tracker.reached[mark]
            self.progress.show(what, done, wanted)
            return done >= wanted

        return await self.tracker.until(there, self.options.timeout, f"not all of {wanted} runs have {what}")

    async def poll(self, count: Callable[[], Any], wanted: int, what: str) -> None:
        """Wait until an asynchronous count is as wanted, asking once a second.

        Raises:
            TimeoutError: it is not in time.
        """
        try:
            async with asyncio.timeout(self.options.timeout):
                while (now := int(await count())) != wanted:
                    self.progress.show(what, now, wanted)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise TimeoutError(f"after {self.options.timeout:.0f} s: {what}") from None

    async def settle(self) -> None:
        """Wait until all runs do their work and their status says so."""
        if self.agents is None and self.subject.has_operator:
            return  # without agents no status ever says that steps go on
        await self.poll(lambda: self.subject.settled(self.client), len(self.tracker.runs), "settled")

    async def clear(self, names: Iterable[str]) -> None:
        """Delete runs and wait until nothing of them is left."""
        await asyncio.gather(*(self.subject.delete(self.client, name) for name in names))
        await self.poll(lambda: self.subject.leftovers(self.client), 0, "left behind")
        await self.tracker.until(lambda: self.tracker.pods_there == 0, self.options.timeout, "pods are left")

    async def writes(self, *windows: Window) -> list[dict[str, Any]]:
        """Writes in each of the windows, from the audit log."""
        await asyncio.sleep(audit.SETTLE_SECONDS)
        log = self.plane.audit_log
        return [audit.tally(audit.read(log, window.began_at, window.ended_at)) for window in windows]

    async def warm_up(self) -> None:
        """One run before anything is measured, on a cluster that has come to rest: first times are slower."""
        self.progress.show("warming up", 0, 1)
        await self._rest()
        [name] = self.names(1)
        await self.submit([name])
        await self.reach(self.begins, "warmed up")
        await self.settle()
        await self.clear([name])
        self.tracker.forget()
        await self._rest()

    async def _rest(self) -> None:
        """Wait until nobody but leases has written for a while; new nodes, for example, are labelled by others."""
        async with asyncio.timeout(self.options.timeout):
            while True:
                window = self.window()
                await asyncio.sleep(REST_SECONDS)
                [tally] = await self.writes(window.close())
                if not tally["byWho"]:
                    return

    async def requests(self) -> Counter[str]:
        """API requests of the operator so far by verb and kind, as its /metrics tell."""
        found: Counter[str] = Counter()
        for replica in self.replicas:
            if replica.running:
                found += await replica.requests()
        return found

    def memory(self) -> dict[str, Any]:
        """Resident set of each operator process (or of the peer's controller), now and at its peak."""
        processes: list[Replica | JobSetController] = [*self.replicas, *([self.peer] if self.peer is not None else [])]
        found = [process.memory() for process in processes if process.running]
        return {"operatorMemory": found[0] if len(found) == 1 else found} if found else {}

    async def leader(self) -> Replica:
        """The replica that holds the Lease."""
        holder = ""
        async with asyncio.timeout(self.options.timeout):
            while True:
                holder = str((await self.lease()).get("holderIdentity") or "")
                for replica in self.replicas:
                    if replica.running and holder.startswith(f"replica-{replica.number}_"):
                        return replica
                await asyncio.sleep(0.1)

    async def lease(self) -> dict[str, Any]:
        """Spec of the Lease by which replicas are elected."""
        leases = await self.client.list("Lease", OPERATOR_NAMESPACE)
        found: dict[str, Any] = leases[0]["spec"] if leases else {}
        return found


@asynccontextmanager
async def open_bench(
    options: Options, progress: Progress, *, heartbeats: bool = False, replicas: int = 1
) -> AsyncIterator[Bench]:
    """Start everything; end everything afterwards."""
    _raise_file_limit()
    subject = SUBJECTS[options.peer]()
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="operator-scale-")) if options.keep else _temporary(stack)
        plane = make_plane(folder, options.profile, heartbeats=heartbeats)
        stack.callback(plane.stop)
        progress.show("starting the control plane", 0, 1)
        await asyncio.to_thread(plane.start)
        progress.show(f"creating {options.nodes} nodes", 0, 1)
        await asyncio.to_thread(prepare, plane, node_names(options.nodes), operator=subject.has_operator)
        client = await stack.enter_async_context(connect(str(plane.kubeconfig("driver", ("system:masters",)))))
        agents = AgentProcess(options.start_seconds, options.step_seconds)
        simulated = options.agents and subject.has_operator
        crowd = await stack.enter_async_context(agents) if simulated else None
        tracker = Tracker(subject.label, crowd.pod if crowd else None)
        if crowd is not None:
            crowd.on_told = tracker.told
        following = asyncio.create_task(tracker.follow(client))
        stack.push_async_callback(_cancel, following)
        operators = await _start_operators(stack, plane, folder, replicas) if subject.has_operator else []
        if crowd is not None:
            crowd.use_key(await asyncio.to_thread(master_key, plane))
        peer = await _start_jobset(stack, plane, folder) if options.peer == JobSets.name else None
        bench = Bench(options, plane, client, subject, tracker, crowd, operators, peer, progress)
        await bench.warm_up()
        yield bench
        plane.check()
        if peer is not None:
            peer.check()
        if options.keep:
            print(json.dumps({"kept": str(folder)}))


def _temporary(stack: AsyncExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="operator-scale-", ignore_cleanup_errors=True)))


async def _start_operators(stack: AsyncExitStack, plane: MeasuredPlane, folder: Path, count: int) -> list[Replica]:
    kubeconfig = plane.kubeconfig(*operator_user())
    replicas = [Replica(number, kubeconfig, folder / "logs" / f"operator-{number}.log") for number in range(count)]
    for replica in replicas:
        stack.callback(replica.kill)
        replica.start()
    for replica in replicas:
        await replica.ready()
    return replicas


async def _start_jobset(stack: AsyncExitStack, plane: MeasuredPlane, folder: Path) -> JobSetController:
    controller = JobSetController(plane, installation(JOBSET), folder / "jobset")
    stack.callback(controller.stop)
    await asyncio.to_thread(controller.start)
    return controller


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _raise_file_limit() -> None:
    """Thousands of connections are held by agents that wait for news."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
