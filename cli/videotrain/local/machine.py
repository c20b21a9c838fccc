"""Whether this machine can hold a run whose worker processes use its CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from videotrain.errors import UsageError
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.resource.stages import Stage
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds, pool_of

PROCESSES_PER_CORE: Final = 8
"""With more, a world takes longer to start than most manifests allow it, and nothing is gained by it."""
PROCESS_BYTES: Final = 700_000_000
"""Of a worker process without model and data: Python, torch and what they share with no other. Measured."""


@dataclass(frozen=True)
class Machine:
    """What there is."""

    cores: int
    memory: int
    """Bytes."""

    @classmethod
    def here(cls, groups: Path = Path("/sys/fs/cgroup")) -> Machine:
        """This machine, or what a container has of it."""
        cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
        limit, quota = groups / "memory.max", groups / "cpu.max"
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            memory = min(memory, int(text))
        if quota.is_file() and (parts := quota.read_text().split())[0].isdigit():
            cores = max(1, min(cores, -(-int(parts[0]) // int(parts[1]))))
        return cls(cores, memory)


def check_machine(run: VideoTrainingRun, machine: Machine) -> None:
    """Refuse a run that a machine cannot hold on its CPU.

    Raises:
        UsageError: a stage has too many worker processes, or they would need more memory than there is.
    """
    for index, stage in enumerate(run.spec.stages):
        nodes, each = node_bounds(run, stage).max, pool_of(run, stage).processes
        workers = nodes * each
        shape = f"stage {stage.name!r} has {workers} worker processes ({nodes} nodes with {each} each)"
        lower = (
            "lower spec.nodes.max or spec.pool.gpusPerNode (such as --set nodes.max=1), or use a machine with a GPU "
            "for each of them"
        )
        if workers > machine.cores * PROCESSES_PER_CORE:
            raise UsageError(
                f"{shape}, and this machine has {_count(machine.cores, 'core')}: at most {PROCESSES_PER_CORE} "
                f"processes for each core get on; {lower}"
            )
        needed = workers * (PROCESS_BYTES + _model_bytes(run, index, stage, workers))
        if needed > machine.memory:
            raise UsageError(
                f"{shape}, which need about {needed / 1e9:.1f} GB of memory on the CPU, and this machine has "
                f"{machine.memory / 1e9:.1f} GB; {lower}, or a smaller model, batch or resolution"
            )


def _model_bytes(run: VideoTrainingRun, index: int, stage: Stage, workers: int) -> int:
    """What training holds in each process, as it would on a GPU; 0 for other stages."""
    if stage.train is None:
        return 0
    table = TrainMemory(run, index)
    found = [table.of(number, workers).memory for number in range(len(stage.train.buckets))]
    return max(memory.total - memory.reserve for memory in found)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
