"""One container of a pod: made, started, probed, stopped, and started again as its pod wants it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from videotrain.clock import utc_now
from videotrain.kubelet.exec_session import Surrounding
from videotrain.kubelet.node_object import GPU_RESOURCE
from videotrain.kubelet.probes import Probes
from videotrain.kubelet.site import Site, can_be_pulled
from videotrain.kubelet.status import Record, to_second
from videotrain.kubelet.volumes import PodVolumes
from videotrain.processes.leftovers import end_leftovers
from videotrain.processes.podfiles import ContainerConfigError, command_line, container_environment, demand
from videotrain.processes.process import KILLED, Ending, SupervisedProcess, read_ending
from videotrain.tasks import end
from videotrain_api.schema import Json
from videotrain_api.vocabulary import ENV_POD_IP
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.kube.client import ApiError
from videotrain_operator.manager.settings import ENV_PREFIX

_log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 30
MESSAGE_BYTES: Final = 2048
"""What a kubelet takes from the end of a log as the termination message."""
_RETRY_SECONDS: Final = (1.0, 10.0)


class _NotPulled(Exception):
    """The image cannot be had."""


class Named(NamedTuple):
    """What a container that is killed on order is to have died of."""

    exit_code: int
    reason: str


class Stop:
    """The wish to stop a pod; its deadline is read anew, since it may move closer."""

    def __init__(self, deadline: Callable[[], datetime | None]) -> None:
        self._deadline = deadline
        self.asked = asyncio.Event()

    def seconds_left(self) -> float:
        """Until the tree has to be killed."""
        deadline = self._deadline()
        return (deadline - datetime.now(UTC)).total_seconds() if deadline else 0.0

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not when the pod is to stop."""
        # Not wait_for: before Python 3.12 it loses a cancellation that comes when the wait is over.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.asked.wait()


class Container:
    """Runs one container of one pod."""

    def __init__(
        self,
        site: Site,
        record: Record,
        root: Path,
        volumes: PodVolumes,
        stop: Stop,
        pod: Callable[[], Json],
        on_change: Callable[[], None],
    ) -> None:
        self._site, self._record, self._root, self._volumes = site, record, root, volumes
        self._stop, self._pod, self._on_change = stop, pod, on_change
        self._told: set[str] = set()
        self._named: Named | None = None
        self._exit_file = site.pod_root(pod()) / f".exit-{record.name}.json"
        self._is_main = record.name == pod()["spec"]["containers"][0]["name"]
        self.process: SupervisedProcess | None = None
        """While it runs."""
        self.surrounding: Surrounding | None = None
        """Of its last start."""

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self._site.log_file(self._pod(), "" if self._is_main else self._record.name)

    def recover(self) -> bool:
        """Report how an earlier life of the node left it; nothing of it runs any more.

        Returns:
            It was ended by the end of that life.
        """
        record, ending = self._record, read_ending(self._exit_file)
        told = record.ended
        ran = ending is not None or self._started_file.exists() or "running" in record.state
        if not ran or (told and (ending is None or to_second(ending.finished_at) <= told["finishedAt"])):
            return False
        if ending is None:
            at = utc_now()
            started = record.state.get("running", {}).get("startedAt", at)
            ending = Ending(KILLED, started, at, "ContainerStatusUnknown", "it ended while its node was away")
        if told:
            record.restarts += 1
        record.attempts = max(1, record.attempts)
        record.end(ending, self._message(ending))
        return ending.reason in ("Killed", "ContainerStatusUnknown")

    async def run(self, policy: str) -> bool:
        """Run it until it is not to be started again.

        Args:
            policy: Never, OnFailure or Always.

        Returns:
            It ended by itself with exit code 0.
        """
        pauses = _pauses(self._site)
        while True:
            ended = self._record.ended
            if ended is not None:
                succeeded = bool(ended["exitCode"] == 0)
                if policy == "Never" or (policy == "OnFailure" and succeeded):
                    return succeeded
                await self._back_off(next(pauses))
            # After the pause, not before it: a pod may be deleted meanwhile.
            if self._stop.asked.is_set():
                return False
            began = time.monotonic()
            await self._once()
            if time.monotonic() - began > self._site.timing.healthy:
                pauses = _pauses(self._site)

    async def kill(self, named: Named | None = None) -> None:
        """Kill its whole tree now and wait until it is gone.

        Args:
            named: what to report as its end.
        """
        self._named = named
        if self.process is not None:
            self.process.kill()
            await self.process.wait()

    @property
    def _started_file(self) -> Path:
        return self._exit_file.with_name(f".started-{self._record.name}")

    async def _back_off(self, seconds: float) -> None:
        if seconds <= 0:
            return
        text = f"back-off {seconds:g}s restarting container {self._record.name}; its log is {self.log}"
        self._record.wait("CrashLoopBackOff", text)
        self._on_change()
        self._site.events.warn(self._pod(), "BackOff", text)
        await self._stop.sleep(seconds)

    async def _once(self) -> None:
        """Start it as soon as everything that it needs is there, and see it through."""
        probes = await self._make()
        if probes is None or self.process is None:
            return
        failing = asyncio.Event()
        watch = asyncio.create_task(self._probe(probes, failing))
        try:
            ending = await self._until_end(self.process, failing)
        finally:
            await end(watch)
            await self.kill(self._named)
        await self._report(ending)

    async def _make(self) -> Probes | None:
        """Prepare and start it; None if the pod is stopped before that succeeds."""
        pauses, pull_pauses = _doubling(*_RETRY_SECONDS), _pauses(self._site)
        next(pull_pauses)
        while not self._stop.asked.is_set():
            try:
                return await self._start()
            except ContainerConfigError as error:
                await self._wait("CreateContainerConfigError", str(error), next(pauses))
            except (ApiError, Conflict) as error:
                await self._wait("CreateContainerConfigError", f"the API server: {error}", next(pauses))
            except _NotPulled as error:
                await self._wait("ErrImagePull", str(error), min(2.0, self._site.timing.back_off))
                await self._wait("ImagePullBackOff", f"Back-off pulling image: {error}", next(pull_pauses))
            except OSError as error:
                at = utc_now()
                _log.warning("%s could not be started: %s", self.log.stem, error)
                self._record.attempts = max(1, self._record.attempts)
                await self._report(Ending(128, at, at, "StartError", str(error)))
                return None
        return None

    async def _start(self) -> Probes:
        pod = self._pod()
        # As the pod describes it now: its image can be changed.
        containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        spec = dict(next(container for container in containers if container["name"] == self._record.name))
        self._record.spec = spec
        if not can_be_pulled(spec.get("image", "")):
            raise _NotPulled(f"image {spec['image']!r} does not exist (process nodes refuse this name on purpose)")
        address = str(pod["status"].get("podIP", ""))
        probes = Probes(spec, address, self._on_probe)
        if "lifecycle" in spec:
            raise ContainerConfigError(f"container {spec['name']!r}: lifecycle: hooks are not run on process nodes")
        lookup = await self._volumes.lookup(pod)
        await self._volumes.refresh(pod, lookup)
        self._root.mkdir(parents=True, exist_ok=True)
        self._volumes.mount(spec, pod, self._root)
        hostname = pod["spec"].get("hostname") or pod["metadata"]["name"]
        # All pods share the machine's ports, so a program has to know which address is its own.
        of_node = {
            "HOSTNAME": hostname,
            ENV_POD_IP: address,
            **self._site.devices[pod["spec"]["nodeName"]].take(pod["metadata"]["uid"], demand(pod, GPU_RESOURCE)),
            f"{ENV_PREFIX}LISTEN_ADDRESS": address,
            **self._site.server_environment(),
            **self._site.environment,
        }
        env = container_environment(spec, pod, self._root, lookup, of_node)
        command = command_line(spec, env)
        self.log.parent.mkdir(exist_ok=True)
        self._started_file.touch()
        cwd = self._root / str(spec.get("workingDir", "")).strip("/")
        cwd.mkdir(parents=True, exist_ok=True)
        self.surrounding = Surrounding(env, cwd)
        start = SupervisedProcess.start(command, env=env, cwd=cwd, log=self.log, exit_file=self._exit_file)
        self.process = await _or_killed(asyncio.create_task(start))
        self._record.run(self.process.started_at, probes.started, probes.ready)
        self._on_change()
        return probes

    def _on_probe(self, started: bool, ready: bool) -> None:
        self._record.started, self._record.ready = started, ready
        self._on_change()

    async def _probe(self, probes: Probes, failing: asyncio.Event) -> None:
        self._site.events.warn(self._pod(), "Unhealthy", await probes.run())
        failing.set()

    async def _until_end(self, process: SupervisedProcess, failing: asyncio.Event) -> Ending:
        over = asyncio.ensure_future(process.wait())
        waits = [asyncio.create_task(self._stop.asked.wait()), asyncio.create_task(failing.wait())]
        try:
            await asyncio.wait([over, *waits], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if not over.done():
            await self._ask_to_end(process, over)
        ending = await over
        if ending.reason == "SupervisorLost":
            await asyncio.to_thread(end_leftovers, self._root, 0.0)
            ending = ending._replace(finished_at=utc_now())
        return ending._replace(**self._named._asdict()) if self._named else ending

    async def _ask_to_end(self, process: SupervisedProcess, over: asyncio.Future[Ending]) -> None:
        """SIGTERM now, SIGKILL to the whole tree at the deadline."""
        process.terminate()
        grace = float(self._pod()["spec"].get("terminationGracePeriodSeconds", GRACE_SECONDS))
        unhealthy_until = time.monotonic() + grace
        while not over.done():
            deleted = self._stop.asked.is_set()
            left = self._stop.seconds_left() if deleted else unhealthy_until - time.monotonic()
            if left <= 0:
                process.kill()
                return
            await asyncio.wait([over], timeout=min(left, 0.5))

    async def _report(self, ending: Ending) -> None:
        self.process, self._named = None, None
        self._record.end(ending, self._message(ending))
        self._on_change()

    def _message(self, ending: Ending) -> str:
        """The termination message: the container's own, else the end of its log if it wants that, else ours."""
        spec = self._record.spec
        own = self._root / str(spec.get("terminationMessagePath", "dev/termination-log")).strip("/")
        if own.is_file() and own.stat().st_size:
            return own.read_bytes()[-MESSAGE_BYTES:].decode(errors="replace")
        wanted = spec.get("terminationMessagePolicy") == "FallbackToLogsOnError" and ending.exit_code != 0
        if wanted and not ending.message and self.log.is_file():
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - MESSAGE_BYTES))
                return file.read().decode(errors="replace")
        return ending.message

    async def _wait(self, reason: str, message: str, seconds: float) -> None:
        self._record.wait(reason, message)
        self._on_change()
        if f"{reason}: {message}" not in self._told:
            self._told.add(f"{reason}: {message}")
            self._site.events.warn(self._pod(), "Failed", f"{reason}: {message}")
        await self._stop.sleep(seconds)


async def _or_killed(starting: asyncio.Task[SupervisedProcess]) -> SupervisedProcess:
    """The started process; if we are cancelled meanwhile, it is killed as soon as it can be."""
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        process = await starting
        process.kill()
        await process.wait()
        raise


def _doubling(first: float, longest: float) -> Iterator[float]:
    while True:
        yield first
        first = min(first * 2, longest)


def _pauses(site: Site) -> Iterator[float]:
    """Before each new start of a container: at once first, then longer and longer."""
    yield 0.0
    yield from _doubling(site.timing.back_off, site.timing.longest_back_off)
