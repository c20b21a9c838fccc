"""What every task gets: configuration, world, record sink and the drain request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from videotrain_api.config.stage_config import StageConfig
from videotrain_trainer.worker.stage_reporter import RecordSink, StageReporter
from videotrain_trainer.worker.start_clock import StartClock

if TYPE_CHECKING:
    import torch  # takes seconds and memory of each process that only curates

Outcome = Literal["completed", "drained"]
"""How a task ended: all of its work is done, or it stopped at a step boundary and saved because it was asked to."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The worker processes of a generation. The process group is initialised (gloo on CPU, NCCL on CUDA)."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


class Drain(Protocol):
    """The request to stop at the next step boundary."""

    def requested(self) -> bool:
        """This process was asked. Not collective."""

    def agreed(self) -> bool:
        """Any process of the world was asked. Collective: every rank calls it at the same place."""


@dataclass(frozen=True, kw_only=True)
class CopyPlace:
    """Where copies of training state lie in a pod's memory."""

    folder: Path
    """Outlives generations, not the pod."""
    key: bytes
    """By which whoever made a copy shows that it belongs to the run."""
    node_ranks: int
    """Worker processes of each pod; they see one folder."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """One stage in one generation, seen from one worker process."""

    config: StageConfig
    world: World
    generation: int
    restore: bool
    """Start from the newest complete checkpoint, if there is one."""
    saved_step: int
    """Newest step that the operator knows to be saved; 0 for none."""
    node: str
    """Name of the machine; processes with the same name share its memory and network."""
    records: RecordSink
    drain: Drain
    scratch: Path
    """Pod-local folder for temporary files."""
    cache: Path
    """Pod-local folder for things worth keeping between generations."""
    copies: CopyPlace | None = None
    """Set where the stage keeps copies of its state in memory."""
    profile_request: Path | None = None
    """Where the agent puts a ProfileRequest; None where there is no agent."""
    start: StartClock = field(default_factory=StartClock)
    """Of this start; by default it begins now."""

    @cached_property
    def reporter(self) -> StageReporter:
        """Builds and writes the records of every task."""
        name, digest = self.config.stage.name, self.config.hash()
        return StageReporter(sink=self.records, generation=self.generation, stage=name, config_hash=digest)


Task = Callable[[StageContext], Outcome]
"""A task module's `run`. Failures are raised as TrainerError."""
