"""Facts of one generation, folded from its records as they come."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from videotrain_api.cost import gpus
from videotrain_api.records import (
    CheckpointRecord,
    CurationCounts,
    CurationRecord,
    EvaluationRecord,
    GenerationProgress,
    Measures,
    PhaseRecord,
    ProfileRecord,
    SamplesRecord,
    SavedPoint,
    StartedRecord,
    StepRecord,
    StoredProfile,
    Straggler,
    TrainerRecord,
    ValidationRecord,
    WorkerExit,
)

State = Literal["starting", "running", "draining", "drained", "failed", "succeeded"]

RATE_STEPS = 20
"""Steps over which throughput is averaged."""
STRAGGLERS = 3
"""Ranks that are told to be slowest most often."""
PROFILES = 16
"""Newest traces that are told."""
LOADING = ("weights", "checkpoint", "copies")
"""Phases of a start that read the state, see `training/setup.py`."""
SAVED_POINTS = 8
"""Newest checkpoints that are told."""


class ProgressFold:
    """Builds the GenerationProgress of a generation in this pod."""

    def __init__(self, generation: int, stage: str, launched_at: datetime, gpu_kinds: Sequence[str] = ()) -> None:
        self.generation = generation
        self.stage = stage
        self.state: State = "starting"
        self.exit: WorkerExit | None = None
        self.stacks: str | None = None
        self.ended_at: datetime | None = None
        self._launched_at = launched_at
        self._gpu_kinds = gpu_kinds
        self._started: StartedRecord | None = None
        self._first_step_at: datetime | None = None
        self._recent: deque[StepRecord] = deque(maxlen=RATE_STEPS)
        self._slowest: defaultdict[int, list[float]] = defaultdict(lambda: [0, 0.0])
        self._judged = 0
        self._tokens = self._frames = 0
        self._profiles: deque[StoredProfile] = deque(maxlen=PROFILES)
        self._loss: float | None = None
        self._validation: ValidationRecord | None = None
        self._beside_steps_at: datetime | None = None
        self._curation: CurationCounts | None = None
        self._evaluation: Measures | None = None
        self._saved: deque[SavedPoint] = deque(maxlen=SAVED_POINTS)
        # Stalls up to each step, (step, data, checkpoint) in microseconds: a checkpoint is committed steps after it was
        # captured. Forgotten up to the newest commit.
        self._stalls: deque[tuple[int, int, int]] = deque([(0, 0, 0)])

    @property
    def step(self) -> int:
        """Last finished step, or the step that the generation resumed from."""
        if self._recent:
            return self._recent[-1].step
        return self._started.resumed_step if self._started else 0

    @property
    def last_sign_at(self) -> datetime:
        """When the generation last got anywhere: last step, validation or part of a phase, else start, else launch."""
        ends = [self._recent[-1].finished_at] if self._recent else []
        if self._beside_steps_at is not None:
            ends.append(self._beside_steps_at)
        if ends:
            return max(ends)
        return self._started.at if self._started else self._launched_at

    def apply(self, record: TrainerRecord) -> None:
        """Take one record of the pod's local rank 0."""
        if isinstance(record, StartedRecord):
            self._started = record
            if self.state == "starting":
                self.state = "running"
        elif isinstance(record, StepRecord):
            self._step_done(record)
        elif isinstance(record, ValidationRecord):
            self._validation, self._beside_steps_at = record, record.at
        elif isinstance(record, SamplesRecord):
            self._beside_steps_at = record.at
        elif isinstance(record, PhaseRecord):
            self._beside_steps_at = record.at
            if record.phase == "list" and self._started is not None:
                self._started = self._started.model_copy(update={"total_steps": record.total})
        elif isinstance(record, CheckpointRecord):
            self._checkpoint_done(record)
        elif isinstance(record, CurationRecord):
            self._curation = record.counts
        elif isinstance(record, EvaluationRecord):
            self._evaluation = record.measures
        elif isinstance(record, ProfileRecord):
            self._profile_stored(record)

    def _step_done(self, record: StepRecord) -> None:
        if self._first_step_at is None:
            self._first_step_at = record.finished_at
        self._recent.append(record)
        self._loss = record.loss if record.loss is not None else self._loss
        if record.slowest_rank is not None and self._started is not None and self._started.world_size > 1:
            self._judged += 1
            self._slowest[record.slowest_rank][0] += 1
            self._slowest[record.slowest_rank][1] += record.straggler_ratio or 0.0
        self._tokens += record.tokens
        if record.bucket is not None:
            _, frames, _ = record.bucket.split("/")  # such as 256px/33f/16:9
            self._frames += record.samples * int(frames.removesuffix("f"))
        _, data, checkpoint = self._stalls[-1]
        self._stalls.append((record.step, data + record.data_stall_us, checkpoint + record.checkpoint_us))

    def _profile_stored(self, record: ProfileRecord) -> None:
        self._profiles.append(
            StoredProfile(
                number=record.number,
                rank=record.rank,
                first_step=record.first_step,
                last_step=record.last_step,
                uri=record.uri,
                error=record.error,
            )
        )

    def _checkpoint_done(self, record: CheckpointRecord) -> None:
        while len(self._stalls) > 1 and self._stalls[1][0] <= record.step:
            self._stalls.popleft()
        _, data, checkpoint = self._stalls[0]
        self._saved.append(
            SavedPoint(
                step=record.step,
                captured_at=record.captured_at,
                committed_at=record.committed_at,
                uri=record.uri,
                data_stall_us=data,
                checkpoint_us=checkpoint,
            )
        )

    def snapshot(self) -> GenerationProgress:
        """The facts so far."""
        started = self._started
        _, data, checkpoint = self._stalls[-1]
        world_size, flops = started.world_size if started else None, self._rate("model_flops")
        last_step_at, beside = self._recent[-1].finished_at if self._recent else None, self._beside_steps_at
        newer = beside is not None and (last_step_at is None or beside > last_step_at)
        return GenerationProgress(
            generation=self.generation,
            stage=self.stage,
            state=self.state,
            world_size=world_size,
            resumed_step=started.resumed_step if started else None,
            total_steps=started.total_steps if started else None,
            step=self.step,
            launched_at=self._launched_at,
            started_at=started.at if started else None,
            load_us=sum(started.phases_us.get(phase, 0) for phase in LOADING) if started else None,
            first_step_at=self._first_step_at,
            last_step_at=last_step_at,
            last_sign_at=beside if newer else None,
            ended_at=self.ended_at,
            data_stall_us=data,
            checkpoint_us=checkpoint,
            tokens=self._tokens,
            frames=self._frames,
            saved=list(self._saved),
            exit=self.exit,
            stacks=self.stacks,
            skipped_checkpoints=started.skipped_checkpoints if started else [],
            attention=started.attention if started else None,
            gradient_check=started.gradient_check if started else None,
            curation=self._curation,
            evaluation=self._evaluation,
            loss=self._loss,
            validation_loss=self._validation.loss if self._validation else None,
            samples_per_second=self._rate("samples"),
            tokens_per_second=self._rate("tokens"),
            model_flops_per_second=flops,
            gpu_kinds=list(self._gpu_kinds) or None,
            mfu=gpus.utilisation(flops, world_size, self._gpu_kinds),
            hfu=gpus.utilisation(self._rate("hardware_flops"), world_size, self._gpu_kinds),
            useful_mfu=gpus.utilisation(self._rate("useful_flops"), world_size, self._gpu_kinds),
            memory_bytes=max((r.memory_bytes for r in self._recent if r.memory_bytes is not None), default=None),
            profiles=list(self._profiles),
            stragglers=self._stragglers(),
        )

    def _stragglers(self) -> list[Straggler]:
        often = sorted(self._slowest.items(), key=lambda item: (-item[1][0], item[0]))[:STRAGGLERS]
        return [
            Straggler(rank=rank, steps=int(steps), share=round(steps / self._judged, 4), ratio=round(ratio / steps, 4))
            for rank, (steps, ratio) in often
        ]

    def _rate(
        self, quantity: Literal["samples", "tokens", "model_flops", "hardware_flops", "useful_flops"]
    ) -> float | None:
        found = [getattr(record, quantity) for record in self._recent]
        if not found or None in found:
            return None
        seconds = (self._recent[-1].finished_at - self._recent[0].started_at).total_seconds()
        total = float(sum(found))
        return total / seconds if seconds > 0 else None
