"""What a run keeps in its object store and asks of it, counted stage by stage: estimates that no bill holds.

Counted are checkpoints that its policy keeps, final weights, records of steps, and samples where it is known how many
clips there are. Not counted are raw videos and curated clips, whose size nobody knows before, sources of others,
requests that are repeated, and the looks by which ranks wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Final

from videotrain_api.billing.estimates import Kept, StorageEstimate
from videotrain_api.config.presets import complete_autoencoder
from videotrain_api.config.resolve import latent_readers
from videotrain_api.cost.autoencoder_flops import autoencoder_parameters
from videotrain_api.cost.flops import adapter_parameters, parameters, run_shape
from videotrain_api.cost.forecast import CostForecast
from videotrain_api.cost.peer_copies import AVERAGE_BYTES, STATE_BYTES
from videotrain_api.cost.preparation import preparation
from videotrain_api.cost.stage_data_wait import sample_bytes
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.resource.stages import Stage, node_counts
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import CheckpointPolicy, VideoTrainingRun, node_bounds, pool_of
from videotrain_api.schema import Json, ManifestError

PART_BYTES: Final = 5 << 20
"""Of a large object that is written in parts, each of them a request."""
CHECKPOINT_FILES: Final = 4
"""Of a checkpoint beside those of the ranks: index, manifest, order of samples, and which is the newest."""
RECORD_BYTES: Final = 700
"""Of the record of a step."""
RECORDS_SECONDS: Final = 20.0
"""Between two writes of records."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """How far a stage is, and how long what it makes lies there."""

    steps: int
    seconds: float | None
    """That its steps took; None if nobody knows."""
    lies_seconds: float
    """From its begin to the end of the run, or to the time of the bill."""
    complete: bool


def planned_storage(run: VideoTrainingRun, planned: CostForecast) -> list[StorageEstimate]:
    """Of a whole run at its greatest number of nodes, from its first step to its end. What it leaves lies there on.

    Args:
        run: a valid manifest.
        planned: its forecast.
    """
    took = [(one.seconds_per_step or 0.0) * one.work.steps if one.work else 0.0 for one in planned.stages]
    hours = planned.preparation.hours_of_video if planned.preparation else None
    found: list[StorageEstimate] = []
    for index, expected in enumerate(planned.stages):
        steps = expected.work.steps if expected.work else 0
        part = _Part(steps=steps, seconds=took[index], lies_seconds=sum(took[index:]), complete=True)
        found += _stage(run, index, part, hours)
    return found


def observed_storage(run: VideoTrainingRun, status: RunStatus) -> list[StorageEstimate]:
    """Of a run up to the newest look at its pods, by the steps that were made, at its greatest number of nodes.

    Args:
        run: a valid manifest.
        status: of the run.
    """
    found: list[StorageEstimate] = []
    known = {stage.name: stage for stage in status.stages}
    for index, stage in enumerate(run.spec.stages):
        seen, now = known.get(stage.name), status.observed_at
        if seen is None or seen.started_at is None or now is None:
            continue
        lies = _seconds(seen.started_at, now)
        took = _seconds(seen.started_at, seen.finished_at or now)
        part = _Part(steps=seen.step, seconds=took, lies_seconds=lies, complete=seen.state == "Succeeded")
        found += _stage(run, index, part, None)
    return found


def estimates_of(run: Json) -> list[StorageEstimate]:
    """The same of a stored run; nothing of one whose spec says more than is known here, for its bill does not depend
    on it.
    """
    try:
        found = VideoTrainingRun.from_wire({name: value for name, value in run.items() if name != "status"})
        return observed_storage(found, read_status(run.get("status")).status)
    except ManifestError:
        return []


def _seconds(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin).total_seconds())


def _stage(run: VideoTrainingRun, index: int, part: _Part, hours: float | None) -> Iterator[StorageEstimate]:
    stage = run.spec.stages[index]
    if stage.train or stage.autoencoder:
        yield from _trained(run, stage, part)
    if stage.train:
        yield _kept(stage, "samples", 0, part, reads=round(part.steps * _reads_per_step(run, index)))
    if stage.encode and hours is not None:
        yield from _encoded(run, index, part, hours)
    writes = int((part.seconds or 0.0) / RECORDS_SECONDS) + 1 if part.steps else 0
    yield _kept(stage, "records", part.steps * RECORD_BYTES, part, writes=writes)


def _kept(stage: Stage, kept: Kept, size: int, part: _Part, *, writes: int = 0, reads: int = 0) -> StorageEstimate:
    lies = round(size * part.lies_seconds)
    return StorageEstimate(stage=stage.name, kept=kept, bytes=size, byte_seconds=lies, writes=writes, reads=reads)


def _trained(run: VideoTrainingRun, stage: Stage, part: _Part) -> Iterator[StorageEstimate]:
    task = stage.train or stage.autoencoder
    assert task is not None, "asked for a stage that trains"
    size, average = _parameters(run, stage), stage.train is None or stage.train.ema_decay is not None
    ranks = node_counts(node_bounds(run, stage))[-1] * max(1, pool_of(run, stage).gpus_per_node)
    one = size * (STATE_BYTES + (AVERAGE_BYTES if average else 0))
    made, there = checkpoints_of(run.spec.checkpoint, part.steps, part.seconds)
    # Each rank's file with its mark, which the first rank reads; then each rank reads that all is complete.
    writes = made * (ranks * (_uploads(-(-one // ranks)) + 1) + CHECKPOINT_FILES)
    yield _kept(stage, "checkpoints", there * one, part, writes=writes, reads=made * 2 * ranks)
    if part.complete:
        weights = size * (2 if task.precision == "bf16" else 4)
        yield _kept(stage, "weights", weights, part, writes=_uploads(weights), reads=-(-weights // PART_BYTES))


def _uploads(size: int) -> int:
    """Requests that write an object: one, or one for each part, one before and one after them."""
    return 1 if size <= PART_BYTES else -(-size // PART_BYTES) + 2


def checkpoints_of(policy: CheckpointPolicy, steps: int, seconds: float | None) -> tuple[int, int]:
    """Checkpoints that were made in so many steps, and how many of them are kept.

    Args:
        policy: of the run.
        steps: that were made.
        seconds: in which they were; None if nobody knows, and then every_seconds makes none.
    """
    made = steps // policy.every_steps
    if policy.every_seconds and seconds and steps:
        made = max(made, min(steps, int(seconds / policy.every_seconds)))
    for_ever = 0 if policy.keep_every_steps is None else steps // policy.keep_every_steps
    # Of the newest ones some may be kept for ever as well.
    newest = min(made, policy.keep_last)
    return made, min(made, for_ever + newest)


def _parameters(run: VideoTrainingRun, stage: Stage) -> int:
    if stage.train is None:
        return autoencoder_parameters(complete_autoencoder(run.spec.autoencoder))
    shape, lora = run_shape(run), stage.train.lora
    return parameters(shape) if lora is None else adapter_parameters(shape, lora)


def _reads_per_step(run: VideoTrainingRun, index: int) -> float:
    """Each rank of a group that shares a sequence reads the whole sample; nothing is taken from a cache."""
    table = TrainMemory(run, index)
    layout = table.task.parallel
    return fmean(layout.micro_batches_of(row) * row.batch_size * layout.degree_of(row) for row in table.task.buckets)


def _encoded(run: VideoTrainingRun, index: int, part: _Part, hours: float) -> Iterator[StorageEstimate]:
    spec, stage = run.spec, run.spec.stages[index]
    assert stage.encode is not None, "asked for a stage that encodes"
    names = {reader.stage for reader in latent_readers(spec.stages, index, spec.seed)}
    tables = [TrainMemory(run, number) for number, one in enumerate(spec.stages) if one.name in names]
    sizes = [sample_bytes(table, row) for table in tables for row in table.task.buckets]
    if sizes:
        work = preparation(hours, spec.stages, spec.autoencoder, spec.text_encoder, index)
        size = round(work.clips * work.samples_per_clip * fmean(sizes))
        shards = -(-size // stage.encode.shard_bytes)
        writes = shards * _uploads(stage.encode.shard_bytes)
        yield _kept(stage, "samples", size, part, writes=writes, reads=round(work.clips))
