"""What the train stages of a run will wait for data, at a node count and at an object store's latencies; modelled."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from videotrain_api.config.text_classes import planned_text
from videotrain_api.cost.data_wait import LOADER_THREADS, MICRO_BATCHES_AHEAD, Latency, Reading, StepLoad, data_wait
from videotrain_api.cost.forecast import gpu_cost_micros, row_time
from videotrain_api.cost.rates import MID
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.cost.text_encoding import CAPTION_BYTES
from videotrain_api.money import format_micros
from videotrain_api.resource.stages import Bucket
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ApiModel

STORE: Final = Latency(p50_seconds=0.03, p99_seconds=0.2, stalled_share=0.001, stall_seconds=2.0)
"""Of a request to S3. Assumed: first bytes are said to take 20 to 100 ms."""
NODE_BYTES_PER_SECOND: Final = 12.5e9
"""Of a node's network to the object store: 100 Gbit/s. Assumed."""
SAMPLE_SECONDS: Final = 0.003
"""CPU seconds to read, check and decode a sample of 1 MiB. Measured, see docs/sizing.md."""
SECOND_REQUEST: Final = replace(STORE, hedge_quantile=0.95)
"""The same, where what has not been answered when 19 of 20 would have been is asked for again."""
ROUNDS: Final = 5
"""How often every row of the bucket table is replayed; the first round fills the loaders."""


class StageDataWait(ApiModel):
    """What a stage waits for its data."""

    stage: str
    nodes: int
    reads_per_second: float
    """Samples, of the whole world."""
    node_bytes_per_second: float
    share: float
    """Of the time of the steps with the waiting in it."""
    gpu_hours: float
    """Held while waiting, in the whole stage."""
    cost: str
    """Of them, decimal string in the run's currency."""


def stage_data_wait(run: VideoTrainingRun, index: int, nodes: int, answers: Latency = STORE) -> StageDataWait:
    """Replay the loaders of a train stage. Every row of the bucket table has an equal share of the steps.

    Args:
        run: a valid manifest.
        index: of the stage, which trains.
        nodes: of its world.
        answers: of the object store.
    """
    table = TrainMemory(run, index)
    gpus = nodes * table.pool.gpus_per_node
    reading = Reading(
        threads=LOADER_THREADS,
        ahead=MICRO_BATCHES_AHEAD,
        answers=answers,
        rank_bytes_per_second=NODE_BYTES_PER_SECOND / table.pool.gpus_per_node,
        cpu_seconds=SAMPLE_SECONDS,
    )
    loads = [_load(table, row, gpus) for row in table.task.buckets]
    found = data_wait(loads * ROUNDS, gpus, reading)
    # Waiting comes on top of the steps' own time.
    seconds = table.task.steps * found.waited / max(1, found.steps)
    one = found.seconds / max(1, found.steps)
    samples = sum(load.micro_batches * load.samples * gpus for load in loads) / len(loads)
    moved = sum(load.micro_batches * load.samples * load.sample_bytes * gpus for load in loads) / len(loads)
    return StageDataWait(
        stage=table.stage.name,
        nodes=nodes,
        reads_per_second=samples / one,
        node_bytes_per_second=moved / one / nodes,
        share=found.share,
        gpu_hours=seconds * gpus / 3600,
        cost=format_micros(gpu_cost_micros(seconds, gpus, table.pool.price)),
    )


def sample_bytes(table: TrainMemory, row: Bucket) -> int:
    """What is read for the longest clip of a row: latent, its first and last frame apart, and text features, in
    bfloat16; or the caption.
    """
    image, frames = table.largest_clip(row)
    spec, shape = table.run.spec, table.shape
    latent = image * shape.patch_channels * (frames + 2) // frames
    if table.task.text == "online":
        return 2 * latent + CAPTION_BYTES
    text = planned_text(not spec.text_encoder.trim_padding, spec.text_encoder.max_tokens)
    return 2 * (latent + text * shape.context + shape.pooled)


def _load(table: TrainMemory, row: Bucket, gpus: int) -> StepLoad:
    layout = table.task.parallel
    rounds = -(-layout.micro_batches_of(row) // max(1, gpus // layout.degree_of(row)))
    step = row_time(table.run, table.task, row, gpus, MID, table.pool.gpus_per_node).total
    return StepLoad(
        micro_batches=rounds,
        samples=row.batch_size,
        sample_bytes=sample_bytes(table, row),
        seconds=step / rounds,
    )
