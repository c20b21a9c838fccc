"""The records that every task writes, whatever its steps are: built here only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol, TypedDict, Unpack

from videotrain_api.records import (
    CheckpointRecord,
    CurationCounts,
    CurationRecord,
    EvaluationRecord,
    GradientCheck,
    Housekeeping,
    HousekeepingRecord,
    Measures,
    Phase,
    PhaseRecord,
    ProfileRecord,
    SamplesRecord,
    StartedRecord,
    StepRecord,
    TrainerRecord,
    ValidationRecord,
)

log = logging.getLogger(__name__)


class RecordSink(Protocol):
    """Where records go; see videotrain_api.records.

    Tasks write every record on every rank. The sink of local rank 0 keeps them, so that each pod holds the facts of the
    generation and none are lost with the leader's pod; the sinks of the other local ranks only note the last step.
    """

    def write(self, record: TrainerRecord) -> None:
        """Append one record; safe from any thread."""


class Work(NamedTuple):
    """What the whole world did in a step."""

    samples: int
    tokens: int = 0
    model_flops: float = 0.0
    hardware_flops: float | None = None
    useful_flops: float | None = None


class Measured(TypedDict, total=False):
    """What only some tasks measure of a step; fields of StepRecord."""

    data_stall_us: int
    checkpoint_us: int
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None
    bucket: str | None
    forward_us: int | None
    backward_us: int | None
    communication_us: int | None
    optimizer_us: int | None
    memory_bytes: int | None
    world_spread: float | None
    slowest_rank: int | None
    straggler_ratio: float | None
    sample_requests: int | None
    second_requests: int | None
    repeated_requests: int | None
    slowest_sample_us: int | None
    cache_hits: int | None
    cache_misses: int | None
    cache_bytes: int | None
    stored_bytes: int | None


class ValidationLosses(TypedDict):
    """Fields of ValidationRecord."""

    samples: int
    loss: float
    bucket_losses: dict[str, float]
    times: list[float]
    time_losses: list[float]


class Origin(TypedDict):
    """Fields of Record."""

    generation: int
    stage: str
    config_hash: str


@dataclass(frozen=True, kw_only=True)
class StageReporter:
    """Writes records of one stage in one generation."""

    sink: RecordSink
    generation: int
    stage: str
    config_hash: str

    def started(
        self,
        world_size: int,
        resumed_step: int,
        total_steps: int,
        skipped: list[str] | None = None,
        phases_us: dict[str, int] | None = None,
        attention: str | None = None,
        gradient_check: GradientCheck | None = None,
    ) -> None:
        """This process is ready to work.

        Args:
            world_size: worker processes.
            resumed_step: steps that an earlier generation has done; 0 for none.
            total_steps: optimizer steps, or work units of a stage that does not train.
            skipped: newer checkpoints that were refused, with why.
            phases_us: what the start went into, microseconds.
            attention: kernel that it runs on.
            gradient_check: what it found.
        """
        self.sink.write(
            StartedRecord(
                **self._origin(),
                at=datetime.now(UTC),
                world_size=world_size,
                resumed_step=resumed_step,
                total_steps=total_steps,
                skipped_checkpoints=skipped or [],
                phases_us=phases_us or {},
                attention=attention,
                gradient_check=gradient_check,
            )
        )

    def step(
        self, step: int, started_at: datetime, finished_at: datetime, work: Work, **measured: Unpack[Measured]
    ) -> None:
        """Steps are done, up to the 1-based number `step`. What is not measured was not waited for, or has no value."""
        stalls: Measured = {"data_stall_us": 0, "checkpoint_us": 0}
        self.sink.write(
            StepRecord(
                **self._origin(),
                step=step,
                started_at=started_at,
                finished_at=finished_at,
                samples=work.samples,
                tokens=work.tokens,
                model_flops=work.model_flops,
                hardware_flops=work.hardware_flops,
                useful_flops=work.useful_flops,
                **(stalls | measured),
            )
        )

    def checkpoint(
        self, step: int, captured_at: datetime, committed_at: datetime, uri: str, size: int = 0, stall_us: int = 0
    ) -> None:
        """What was done up to `step` outlives this world.

        Args:
            step: 1-based.
            captured_at: when the step was finished.
            committed_at: when what it made was stored whole.
            uri: where.
            size: bytes that were stored for it.
            stall_us: microseconds for which work stood still for it.
        """
        self.sink.write(
            CheckpointRecord(
                **self._origin(),
                step=step,
                captured_at=captured_at,
                committed_at=committed_at,
                uri=uri,
                bytes=size,
                stall_us=stall_us,
            )
        )

    def housekeeping(self, task: Housekeeping, error: Exception) -> None:
        """Something beside the work itself failed; logged and recorded, and training goes on.

        Args:
            task: see HousekeepingRecord.
            error: what happened.
        """
        log.warning("%s: %s", task, error)
        self.sink.write(HousekeepingRecord(**self._origin(), at=datetime.now(UTC), task=task, message=str(error)))

    def validated(self, step: int, started_at: datetime, **losses: Unpack[ValidationLosses]) -> datetime:
        """Losses on held-out samples after a step.

        Args:
            step: last step that the weights have seen.
            started_at: when training stopped for it.
            losses: see ValidationRecord.

        Returns:
            The time of the record: training goes on from here.
        """
        now = datetime.now(UTC)
        duration_us = (now - started_at) // timedelta(microseconds=1)
        self.sink.write(ValidationRecord(**self._origin(), step=step, at=now, duration_us=duration_us, **losses))
        return now

    def drawn(self, step: int, started_at: datetime, videos: int, uri: str) -> datetime:
        """Videos of fixed prompts were drawn after a step.

        Args:
            step: last step that the weights have seen.
            started_at: when training stopped for it.
            videos: how many.
            uri: of their VideosIndex.

        Returns:
            The time of the record: training goes on from here.
        """
        now = datetime.now(UTC)
        took_us = (now - started_at) // timedelta(microseconds=1)
        self.sink.write(SamplesRecord(**self._origin(), step=step, at=now, duration_us=took_us, videos=videos, uri=uri))
        return now

    def phase(self, phase: Phase, done: int, total: int) -> None:
        """Work that is no step has got further; see PhaseRecord. A world that tells of nothing counts as hung."""
        self.sink.write(PhaseRecord(**self._origin(), at=datetime.now(UTC), phase=phase, done=done, total=total))

    def profiled(self, number: int, rank: int, steps: range, uri: str, error: str) -> None:
        """A trace was stored, or could not be; told by the rank that made it.

        Args:
            number: of the request.
            rank: of this process.
            steps: that it shows.
            uri: where it is, or was to be.
            error: why it is not there; empty if it is.
        """
        self.sink.write(
            ProfileRecord(
                **self._origin(),
                number=number,
                rank=rank,
                at=datetime.now(UTC),
                first_step=steps[0],
                last_step=steps[-1],
                uri=uri,
                error=error,
            )
        )

    def evaluated(self, measures: Measures) -> None:
        """An evaluate stage is done and its rows are stored."""
        self.sink.write(EvaluationRecord(**self._origin(), at=datetime.now(UTC), measures=measures))

    def curated(self, counts: CurationCounts) -> None:
        """A curated set was put together: what was kept and dropped of the whole set."""
        self.sink.write(CurationRecord(**self._origin(), at=datetime.now(UTC), counts=counts))

    def _origin(self) -> Origin:
        return {"generation": self.generation, "stage": self.stage, "config_hash": self.config_hash}
