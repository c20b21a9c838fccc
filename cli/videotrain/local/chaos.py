"""Makes the requested faults happen while a run goes on."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from videotrain.embedded.process_nodes import ProcessNodes
from videotrain.local.chaos_spec import Fault, FiredFaults
from videotrain_api.records import GenerationProgress
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_operator.planner.observed import Observed

_log = logging.getLogger(__name__)

WORKER_NAME: Final = "vt-worker-"
"""Process name of a trainer's worker, followed by its local rank."""
RESTORE_STEPS: Final = 3
"""Steps of the next generation after which a killed node comes back."""
RESTORE_WITHOUT_GENERATION_SECONDS: Final = 20.0
"""It also comes back if no next generation could be formed, which then waits for this very node."""


@dataclass
class _DownNode:
    name: str
    fault: Fault
    generation: int
    since: float


class FaultInjector:
    """Looks at every state of the run and hits when a fault's step is reached."""

    def __init__(
        self, faults: Sequence[Fault], fired: FiredFaults, nodes: ProcessNodes, tell: Callable[[str], None]
    ) -> None:
        self._faults = list(faults)
        self._fired = fired
        self._nodes = nodes
        self._tell = tell
        self._down: list[_DownNode] = []

    def never_fired(self) -> list[str]:
        """Faults that did not happen."""
        return [fault.text for fault in self._faults if fault not in self._fired]

    async def look(self, run: Json, observed: Observed | None) -> None:
        """Compare the run with the faults that are still to come."""
        status = read_status(run.get("status")).status
        if not status.generations:
            return
        current = status.generations[-1]
        progress = _latest(current, observed)
        for fault in self._faults:
            if fault not in self._fired and _reached(fault, current, progress):
                await self._hit(fault, current, observed)
                break  # one at a time: what it did must be seen before the next one chooses its victim
        await self._restore(current, progress)

    async def _hit(self, fault: Fault, current: GenerationStatus, observed: Observed | None) -> None:
        pod = current.members[0 if fault.leader else -1]
        if fault.action == "kill-node":
            node = next((view.node for view in observed.pods if view.name == pod), None) if observed else None
            if node is None:
                return  # the pod is just going; the next look chooses among the next members
            self._fired.add(fault, node)
            self._tell(f"chaos: {fault.text}: killing {node} with {pod}")
            self._down.append(_DownNode(node, fault, current.number, asyncio.get_running_loop().time()))
            await self._nodes.kill_node(node)
            return
        worker = self._worker(pod)
        if worker is None:
            return
        number = signal.SIGKILL if fault.action == "kill-worker" else signal.SIGSTOP
        self._fired.add(fault, f"{pod} {worker.name()}")
        self._tell(f"chaos: {fault.text}: {number.name} to {worker.name()} of {pod}")
        worker.send_signal(number)

    def _worker(self, pod: str) -> psutil.Process | None:
        """The first worker process of a pod."""
        process = self._nodes.process_of(pod)
        if process is None:
            return None
        try:
            tree = psutil.Process(process.supervisor_pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return min((child for child in tree if _is_worker(child)), key=lambda child: child.create_time(), default=None)

    async def _restore(self, current: GenerationStatus, progress: GenerationProgress | None) -> None:
        now = asyncio.get_running_loop().time()
        for down in list(self._down):
            if _due(down, current, progress, now - down.since):
                self._down.remove(down)
                self._tell(f"chaos: {down.name} is back")
                await self._nodes.restore_node(down.name)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return bool(process.name().startswith(WORKER_NAME)) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _latest(current: GenerationStatus, observed: Observed | None) -> GenerationProgress | None:
    """The most advanced member's progress in the running generation."""
    agents = observed.agents.values() if observed else []
    found = [agent.current for agent in agents if agent.current and agent.current.generation == current.number]
    if current.progress is not None and current.progress.generation == current.number:
        found.append(current.progress)
    return max(found, key=lambda progress: progress.step, default=None)


def _reached(fault: Fault, current: GenerationStatus, progress: GenerationProgress | None) -> bool:
    if progress is None or current.ended_at is not None or current.stage != fault.stage:
        return False
    return progress.state == "running" and progress.step >= fault.step


def _due(down: _DownNode, current: GenerationStatus, progress: GenerationProgress | None, seconds: float) -> bool:
    if down.fault.restore_seconds is not None:
        return seconds >= down.fault.restore_seconds
    if current.number <= down.generation:
        return seconds >= RESTORE_WITHOUT_GENERATION_SECONDS
    if current.stage != down.fault.stage:
        return True
    steps = progress.step - (progress.resumed_step or 0) if progress and progress.first_step_at else 0
    return steps >= RESTORE_STEPS
