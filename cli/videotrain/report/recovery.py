"""What each change of the world cost: from the end of one generation to the first step of the next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from videotrain.report.workdir import RunRecords
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.resource.trainrun import CAUSES


@dataclass(frozen=True)
class Recovery:
    """A generation that ended before its time, and how long until steps went on."""

    generation: int
    """The generation that ended."""
    stage: str
    cause: str
    failed_at: datetime
    """When a worker first failed; the end of the last step if none told."""
    roster_at: datetime
    """When the next roster was published."""
    launched_at: datetime | None
    """When its workers were started."""
    ready_at: datetime | None
    """When they were ready to train, the checkpoint loaded."""
    first_step_at: datetime | None
    """End of the first step; None if the next generation made none."""
    lost_steps: int
    """Finished steps that no checkpoint held."""
    lost_seconds: float
    """How long those steps had taken."""
    gpus_before: int
    """GPUs of the generation that ended."""
    gpus_after: int
    """GPUs of the next one."""

    @property
    def seconds(self) -> float | None:
        """From the failure to the end of the first step after it."""
        return (self.first_step_at - self.failed_at).total_seconds() if self.first_step_at else None

    @property
    def gpu_seconds(self) -> float:
        """What it cost, about: the next world waiting for its first step, and the lost steps of the one before."""
        return (self.seconds or 0.0) * self.gpus_after + self.lost_seconds * self.gpus_before

    def phases(self) -> dict[str, float]:
        """Seconds by phase: noticed, launched, ready, firstStep."""
        marks = [self.failed_at, self.roster_at, self.launched_at, self.ready_at, self.first_step_at]
        names = ("noticed", "launched", "ready", "firstStep")
        pairs = zip(names, marks, marks[1:], strict=False)
        return {name: (b - a).total_seconds() for name, a, b in pairs if a and b}


def recoveries(status: RunStatus, records: RunRecords) -> list[Recovery]:
    """Every restart after a fault that the status still knows, oldest first."""
    found = []
    for before, after in zip(status.generations, status.generations[1:], strict=False):
        if before.end_cause in CAUSES:
            found.append(_recovery(before, after, records))
    return found


def _recovery(before: GenerationStatus, after: GenerationStatus, records: RunRecords) -> Recovery:
    progress, records_after = after.progress, records.generation(after.number)
    first = records_after.steps[0].finished_at if records_after and records_after.steps else None
    lost = lost_steps(before, records)
    return Recovery(
        generation=before.number,
        stage=before.stage,
        cause=before.end_cause or "",
        failed_at=min(_failed_at(before, records), after.created_at),
        roster_at=after.created_at,
        launched_at=progress.launched_at if progress else None,
        ready_at=progress.started_at if progress else None,
        first_step_at=first or (progress.first_step_at if progress else None),
        lost_steps=lost,
        lost_seconds=_lost_seconds(before, records),
        gpus_before=before.gpus,
        gpus_after=after.gpus,
    )


def _failed_at(generation: GenerationStatus, records: RunRecords) -> datetime:
    left = records.generation(generation.number)
    exits = [record.at for _, record in left.exits if record.outcome == "failed"] if left else []
    progress = generation.progress
    if progress and progress.exit and progress.exit.outcome == "failed":
        exits.append(progress.exit.at)
    if exits:
        return min(exits)
    if left and left.steps:
        return left.steps[-1].finished_at
    if progress and progress.last_step_at:
        return progress.last_step_at
    return generation.ended_at or generation.created_at


def first_step(generation: GenerationStatus, records: RunRecords) -> int | None:
    """The first step that a generation finished, lost later or not."""
    left, progress = records.generation(generation.number), generation.progress
    if left and left.steps:
        return left.steps[0].step
    if progress and progress.resumed_step is not None and progress.step > progress.resumed_step:
        return progress.resumed_step + 1
    return None


def last_step(generation: GenerationStatus, records: RunRecords) -> int | None:
    """The last step that a generation finished, lost later or not."""
    left, progress = records.generation(generation.number), generation.progress
    known = [left.steps[-1].step] if left and left.steps else []
    if progress and progress.resumed_step is not None and progress.step > progress.resumed_step:
        known.append(progress.step)
    return max(known, default=None)


def lost_steps(generation: GenerationStatus, records: RunRecords) -> int:
    """Steps that a generation finished and that were done again by a later one."""
    if generation.lost_from_step is None:
        return 0
    return max(0, (last_step(generation, records) or 0) - generation.lost_from_step)


def _lost_seconds(generation: GenerationStatus, records: RunRecords) -> float:
    left, lost_from = records.generation(generation.number), generation.lost_from_step
    steps = [s for s in left.steps if s.step > lost_from] if left and lost_from is not None else []
    return (steps[-1].finished_at - steps[0].started_at).total_seconds() if steps else 0.0
