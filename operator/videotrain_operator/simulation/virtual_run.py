"""The real planner over a run in virtual time, from event to event: the time in which nothing happens is skipped.

Unlike `replay`, which goes second by second through an API server's objects, this hands the planner what it would have
observed, and carries out what it decides. So ninety days of a run take as many passes as something happened in them.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from videotrain_api.crd.wire import Manifest
from videotrain_api.records import AgentProgress, Roster
from videotrain_api.render.names import ledger_name, roster_name
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.signing import derive_signing_key
from videotrain_api.vocabulary import FROZEN_SPEC_KEY, LEDGER_KEY, ExitCode, Phase
from videotrain_operator.cluster.podview import gpu_resources, pod_view
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.decision import Deletion, Plan
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.plan import plan
from videotrain_operator.simulation.cluster import MASTER_KEY, START
from videotrain_operator.simulation.failures import Failure
from videotrain_operator.simulation.spot import PricePoint
from videotrain_operator.simulation.timed_world import TimedWorld

MOST_PASSES: Final = 12
"""Passes without time in between; a plan that asks for more goes round in circles."""
PATIENCE: Final = 32.0
"""Factor by which the next look is later after one that found nothing to do."""
OVER: Final = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long things take, seconds."""

    node_seconds: Mapping[str, float]
    """By stage: of one node for a step, whatever the number of nodes."""
    steps: Mapping[str, int]
    """By stage."""
    save_seconds: Mapping[str, float]
    """By stage: for which training stands still at a checkpoint."""
    start: float = 180.0
    """From a roster to the first step."""
    pod: float = 60.0
    """From a pod to its running container, when a node is free."""
    detect: float = 40.0
    """Until a lost node is not ready for the API server."""
    notice: float = 120.0
    """Between the announcement that a node is reclaimed and its end."""
    look: float = 24 * 3600.0
    """Between looks while nothing happens."""


@dataclass
class _Pod:
    """A pod and its agent."""

    view: PodView
    avoids: frozenset[str]
    worlds: list[int] = field(default_factory=list)
    """Generations that its agent launched, the newest two."""
    obeyed: int = 0
    """Newest roster."""


class VirtualRun:
    """One run on nodes of its own, in virtual time."""

    def __init__(
        self,
        run: VideoTrainingRun,
        timing: Timing,
        *,
        nodes: int,
        start: datetime = START,
        rules: ClusterRules | None = None,
        on_pass: Callable[[float, RunStatus], None] | None = None,
    ) -> None:
        """Nothing has happened yet.

        Args:
            run: as a user creates it.
            timing: how long things take.
            nodes: of the cluster, each of which takes one pod.
            start: when virtual time begins.
            rules: what the operator is told to hold the run to.
            on_pass: told of the status after every pass, and of the seconds since the beginning.
        """
        head = run.metadata.model_copy(update={"uid": run.metadata.uid or "virtual", "generation": 1})
        self.run = run.model_copy(update={"metadata": head, "status": None})
        self.timing, self.begin, self.on_pass = timing, start, on_pass
        self.now = 0.0
        """Seconds since the beginning."""
        self.passes = 0
        self.status = RunStatus()
        self.interrupted: dict[str, int] = {}
        """Failures that hit a world, by kind."""
        self._rules = rules or ClusterRules()
        self._key = derive_signing_key(MASTER_KEY, str(head.uid))
        self._pods: dict[str, _Pod] = {}
        self._departed: list[PodView] = []
        self._away = dict.fromkeys(range(nodes), 0)
        """By node, for how many reasons it is not there."""
        self._leaving: set[int] = set()
        self._taken: dict[int, str] = {}
        """Names of pods by their node."""
        self._worlds: dict[int, TimedWorld] = {}
        self._saved: dict[str, int] = {}
        """Newest step in a checkpoint, by stage."""
        self._maps: dict[str, Any] = {}
        self._frozen: dict[str, Any] | None = None
        self._ledger: Mapping[str, Any] | None = None
        self._policy: Mapping[str, Any] | None = None
        self._roster: Roster | None = None
        self._version = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0
        self._resources = gpu_resources(self.run.to_wire())

    def live(self, failures: Iterable[Failure], *, seconds: float) -> RunStatus:
        """Let it go on until it is over or the time is, and return its last status.

        Args:
            failures: what happens to nodes, in the order of their times.
            seconds: how long, since the beginning.

        Raises:
            RuntimeError: the planner does not come to rest.
        """
        coming = iter(failures)
        self._meet(next(coming, None), coming)
        wait, before = 0.0, _stands(self.status)
        while True:
            asked = self._settle()
            if self.status.phase in OVER and all(pod.view.finished_at for pod in self._pods.values()):
                return self.status
            stands = _stands(self.status)
            wait = self.timing.look if asked is None else max(asked, wait * PATIENCE if stands == before else 0.0)
            wait, before = min(wait, self.timing.look), stands
            upcoming = self._events[0][0] if self._events else float("inf")
            if min(upcoming, self.now + wait) >= seconds:
                self.now = seconds
                self._settle()
                return self.status
            self.now = min(upcoming, self.now + wait)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()

    def reprice(self, prices: Iterable[PricePoint]) -> None:
        """Let the price of the run's pool be another from when on; pods that are there keep theirs, as in a cluster."""
        for point in prices:

            def change(price: str = point.price) -> None:
                spec, head = self.run.spec, self.run.metadata
                pool = spec.pool.model_copy(update={"price_per_gpu_hour": price})
                head = head.model_copy(update={"generation": (head.generation or 0) + 1})
                self.run = self.run.model_copy(
                    update={"metadata": head, "spec": spec.model_copy(update={"pool": pool})}
                )

            self._after(point.at - self.now, change)
            if not self.now and point.at == 0:
                change()

    # The operator.

    def _settle(self) -> float | None:
        for _ in range(MOST_PASSES):
            decided = plan(self.run, self._observed(), self._at(self.now), self._rules)
            self.passes += 1
            self._departed.clear()
            self._apply(decided)
            if self.on_pass is not None:
                self.on_pass(self.now, self.status)
            if decided.requeue_seconds != 0:
                return decided.requeue_seconds
        raise RuntimeError(f"the planner does not come to rest within {MOST_PASSES} passes at {self._at(self.now)}")

    def _observed(self) -> Observed:
        return Observed(
            pods=tuple(pod.view for pod in self._pods.values()),
            agents={name: self._answer(pod) for name, pod in self._asked()},
            network_policy=self._policy,
            config_maps=frozenset(self._maps),
            signing_key=self._key,
            frozen_spec=self._frozen,
            departed=tuple(self._departed),
            roster=self._roster,
            roster_resource_version=str(self._version) if self._version else None,
            ledger=self._ledger,
            ledger_resource_version="1" if self._ledger is not None else None,
        )

    def _asked(self) -> Iterable[tuple[str, _Pod]]:
        """As the operator asks: while the leader trains, only it and those outside the world."""
        there = {n: p for n, p in self._pods.items() if p.view.running and not p.view.node_lost}
        world = self._worlds.get(max(self._worlds, default=0))
        members = [member.pod for member in world.roster.members] if world is not None else []
        if world is None or world.ended is not None or members[0] not in there:
            return there.items()
        followers = set(members[1:])
        return [(name, pod) for name, pod in there.items() if name not in followers]

    def _answer(self, pod: _Pod) -> AgentProgress:
        facts = [self._worlds[number].facts(pod.view.name, self.now) for number in pod.worlds]
        return AgentProgress(
            pod=pod.view.name,
            pod_uid=pod.view.uid,
            at=self._at(self.now),
            roster_generation=pod.obeyed,
            current=facts[-1] if facts else None,
            previous=facts[-2] if facts[1:] else None,
        )

    def _apply(self, decided: Plan) -> None:
        self.status = decided.status
        self.run = self.run.model_copy(update={"status": decided.status})
        made = {item["metadata"]["name"] for item in decided.apply if item["kind"] == "Pod" and "spec" in item}
        for deletion in decided.delete:
            if deletion.name in made:
                self._delete(deletion)  # a pod of its name takes its place
        for item in decided.apply:
            name, data = item["metadata"]["name"], item.get("data") or {}
            if item["kind"] == "Pod" and "spec" in item:
                self._create(item)
            elif item["kind"] == "NetworkPolicy":
                self._policy = item["spec"]
            elif name == ledger_name(self.run.metadata.name):
                self._ledger = json.loads(data[LEDGER_KEY])  # in the present form: it was written just now
            elif name == roster_name(self.run.metadata.name):
                self._version += 1
            elif item["kind"] == "ConfigMap":
                self._maps[name] = True
                self._frozen = json.loads(data[FROZEN_SPEC_KEY]) if FROZEN_SPEC_KEY in data else self._frozen
        for deletion in decided.delete:
            self._delete(deletion)
        if decided.roster is not None and (self._roster is None or self._roster.order() < decided.roster.order()):
            self._roster = decided.roster
            self._obey(decided.roster)

    # Pods.

    def _create(self, item: Manifest) -> None:
        self._made += 1
        body = json.loads(json.dumps(item))
        body["metadata"] |= {"uid": f"uid-{self._made}", "creationTimestamp": self._at(self.now).isoformat()}
        view = pod_view(body, {}, self._resources)
        avoids = frozenset(node.name for node in self.status.suspect_nodes)
        self._pods[view.name] = _Pod(replace(view, created_at=self._at(self.now)), avoids)
        self._after(1.0, self._schedule)

    def _schedule(self) -> None:
        if all(pod.view.node is not None or pod.view.finished_at is not None for pod in self._pods.values()):
            return
        free = [n for n, away in self._away.items() if not away and n not in self._taken and n not in self._leaving]
        for pod in self._pods.values():
            if pod.view.node is not None or pod.view.finished_at is not None:
                continue
            node = next((n for n in free if f"node-{n}" not in pod.avoids), None)
            if node is None:
                pod.view = replace(pod.view, unschedulable=f"0/{len(self._away)} nodes fit")
                continue
            free.remove(node)
            self._taken[node] = pod.view.name
            pod.view = replace(pod.view, node=f"node-{node}", bound_at=self._at(self.now), unschedulable="")
            self._after(self.timing.pod, partial(self._start, pod))

    def _start(self, pod: _Pod) -> None:
        view = pod.view
        if self._pods.get(view.name) is pod and view.phase == "Pending" and not view.node_lost:
            number = int(view.uid.rpartition("-")[2])
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            started = self._at(self.now)
            pod.view = replace(view, phase="Running", running=True, address=address, started_at=started)

    def _delete(self, deletion: Deletion) -> None:
        pod = self._pods.get(deletion.name)
        if pod is None or pod.view.uid != deletion.uid:
            return
        if deletion.grace_seconds == 0 or not pod.view.running or pod.view.node_lost:
            self._gone(pod)
            return
        if pod.view.deleting:
            return
        pod.view, world = replace(pod.view, deleting=True), self._world_of(pod)
        if world is not None:
            world.stop(self.now, drain=True)
            self._keep(world)
        until = max(1.0, (world.ended or self.now) - self.now if world is not None else 0.0)
        self._after(until, lambda: self._gone(pod))

    def _end(self, pod: _Pod, seconds: float) -> None:
        """Its container ends after so long, and its object stays."""

        def over() -> None:
            if self._pods.get(pod.view.name) is pod and pod.view.running:
                pod.view = replace(
                    pod.view, phase="Failed", running=False, exit_code=143, finished_at=self._at(self.now)
                )
                self._taken.pop(_number(pod.view.node or ""), None)

        self._after(seconds, over)

    def _gone(self, pod: _Pod) -> None:
        """Its object is removed; when its container ended is known to whoever watches."""
        if self._pods.get(pod.view.name) is not pod:
            return
        del self._pods[pod.view.name]
        ended = pod.view.finished_at or self._at(self.now)
        self._departed.append(replace(pod.view, running=False, finished_at=ended, deleting=True))
        if pod.view.node is not None:
            self._taken.pop(_number(pod.view.node), None)
        self._schedule()

    # Worlds.

    def _obey(self, roster: Roster) -> None:
        for pod in self._pods.values():
            if not pod.view.running or pod.view.node_lost:
                continue
            pod.obeyed, world = roster.generation, self._world_of(pod)
            newer = roster.action != "run" or roster.generation not in self._worlds
            if world is not None and newer:
                world.stop(self.now, drain=roster.drain)
                self._keep(world)
            if roster.action == "leave":
                self._end(pod, max(1.0, (world.ended or self.now) - self.now if world is not None else 0.0))
        if roster.action != "run" or roster.generation in self._worlds:
            return
        older = [world.ended for world in self._worlds.values() if world.ended is not None]
        told = {number for pod in self._pods.values() for number in pod.worlds}
        self._worlds = {number: world for number, world in self._worlds.items() if number in told}
        each = self.timing.node_seconds[roster.stage] / len(roster.members)
        policy = self.run.spec.checkpoint
        every = min(policy.every_steps, max(1, -(-(policy.every_seconds or 10**9) // max(each, 1e-9))))
        world = TimedWorld(
            roster=roster,
            begin=self.begin,
            launched=max([self.now, *older]),
            start_seconds=self.timing.start,
            step_seconds=each,
            total=self.timing.steps[roster.stage],
            every=int(every),
            save_seconds=self.timing.save_seconds.get(roster.stage, 0.0),
            resumed=self._saved.get(roster.stage, 0),
        )
        self._worlds[roster.generation] = world
        for member in roster.members:
            found = self._pods.get(member.pod)
            if found is not None and found.view.uid == member.uid and found.view.node is not None:
                found.worlds = [*found.worlds[-1:], roster.generation]
                if self._away[_number(found.view.node)]:
                    self._hang(found)  # its node is lost, and nobody has noticed yet
        self._after(world.started - self.now, lambda: None)
        self._after(world.made(world.resumed + 3) - self.now, lambda: None)
        self._after(world.finish() - self.now, lambda: self._succeed(world))

    def _succeed(self, world: TimedWorld) -> None:
        world.succeed()
        self._keep(world)

    def _keep(self, world: TimedWorld) -> None:
        """What a world saved outlives it."""
        stage = world.roster.stage
        self._saved[stage] = max(self._saved.get(stage, 0), world.place(self.now).saved)

    def _world_of(self, pod: _Pod) -> TimedWorld | None:
        return self._worlds.get(pod.worlds[-1]) if pod.worlds else None

    # What happens to nodes.

    def _meet(self, failure: Failure | None, coming: Iterable[Failure]) -> None:
        """One failure is waited for at a time, so that a trace of any length takes no memory."""
        if failure is None:
            return

        def happen() -> None:
            self._suffer(failure)
            self._meet(next(iter(coming), None), coming)

        self._after(failure.at - self.now, happen)

    def _suffer(self, failure: Failure) -> None:
        node = failure.node
        if node not in self._away or self._away[node] or node in self._leaving:
            return
        pod = self._pods.get(self._taken.get(node, ""))
        world = self._world_of(pod) if pod is not None and pod.view.running else None
        trains = world is not None and world.ended is None
        if trains:
            self.interrupted[failure.kind] = self.interrupted.get(failure.kind, 0) + 1
        if failure.kind == "preempt":
            self._reclaim(node, failure.seconds)
        elif failure.kind == "node":
            self._lose(node, failure.seconds)
        elif trains and world is not None and pod is not None:
            if failure.kind == "hang":
                self._hang(pod)
                self._after(self.run.spec.failure_policy.hang_seconds + 1, lambda: None)
            else:
                self._break(world, pod.view.name, int(ExitCode.CUDA))

    def _hang(self, pod: _Pod) -> None:
        world = self._world_of(pod)
        if world is not None and world.ended is None and world.hung is None:
            world.hung = self.now

    def _break(self, world: TimedWorld, pod: str, code: int | None) -> None:
        """The workers of a pod exit, and the others lose it; a pod without a code says nothing any more."""
        exits = {member.pod: int(ExitCode.PEER_LOST) for member in world.roster.members}
        world.fail(self.now, exits | ({} if code is None else {pod: code}))
        self._keep(world)

    def _lose(self, node: int, seconds: float) -> None:
        """Its workers are gone at once, and the others wait for them until the API server says why."""
        self._away[node] += 1
        pod = self._pods.get(self._taken.get(node, ""))
        if pod is not None:
            self._hang(pod)

        def noticed() -> None:
            if pod is not None and self._pods.get(pod.view.name) is pod:
                pod.view = replace(pod.view, node_lost=True, node_reason="not ready")
                world = self._world_of(pod)
                if world is not None:
                    self._break(world, pod.view.name, None)

        self._after(self.timing.detect, noticed)
        self._after(max(seconds, self.timing.detect + 1), lambda: self._return(node))

    def _reclaim(self, node: int, seconds: float) -> None:
        """Announced first; workers have until then to save."""
        self._leaving.add(node)
        name = f"node-{node}"
        for pod in self._pods.values():
            if pod.view.node == name:
                pod.view = replace(pod.view, node_draining=True, node_reason="reclaimed")

        def taken() -> None:
            self._leaving.discard(node)
            self._lose(node, seconds)

        self._after(self.timing.notice, taken)

    def _return(self, node: int) -> None:
        self._away[node] -= 1
        self._schedule()

    def _after(self, seconds: float, happens: Callable[[], None]) -> None:
        self._made += 1
        heapq.heappush(self._events, (self.now + max(0.0, seconds), self._made, happens))

    def _at(self, seconds: float) -> datetime:
        return self.begin + timedelta(seconds=seconds)


def _stands(status: RunStatus) -> tuple[object, ...]:
    """What a pass decided; steps and money go on without it."""
    conditions = [(each.type, each.status, each.reason) for each in status.conditions]
    last = status.generations[-1] if status.generations else None
    facts = (last.end_cause, last.progress.state if last.progress else None) if last else None
    waits = (status.unconfirmed, status.suspect_nodes, status.budget_stop, status.warned_percents)
    return status.phase, status.generation, status.stage, facts, conditions, status.nodes, waits


def _number(node: str) -> int:
    return int(node.rpartition("-")[2])
