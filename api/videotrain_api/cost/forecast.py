"""What a run will cost before it starts: tokens, FLOPs, GPU-days and money per stage.

Model: every row of a bucket table gets an equal share of the steps, at the size of its longest square clip. A step
takes its model FLOPs divided by the FLOPs that the world delivers at the stated MFU, unless its time is given.
"""

from __future__ import annotations

from fractions import Fraction
from statistics import fmean
from typing import Final, Literal

from pydantic import Field

from videotrain_api.config import aspect, presets
from videotrain_api.cost import autoencoder_flops, flops
from videotrain_api.cost.gpus import PEAK_FLOPS
from videotrain_api.money import cost_micros, format_micros, parse_micros
from videotrain_api.resource.stages import Bucket, ParallelLayout, SampleTask, Stage, node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.schema import ApiModel

SAMPLER_PASSES: Final = 3
"""Forward passes per sampling step: prompt and image, image only, neither."""


class PublishedStage(ApiModel):
    """A stage of the Open-Sora 2.0 report (table of training cost)."""

    name: str
    resolution: str
    """Largest resolution class of its clips (pictures may be larger)."""
    steps: int
    gpus: int
    gpu_days: float
    cost: str
    """USD at 2.00 per GPU-hour."""
    seconds_per_step: float
    """Computed from the GPU-days."""


PUBLISHED: Final = (
    PublishedStage(
        name="256px T2V",
        resolution="256px",
        steps=85_000,
        gpus=224,
        gpu_days=2240,
        cost="107520.00",
        seconds_per_step=10.16,
    ),
    PublishedStage(
        name="256px T/I2V",
        resolution="256px",
        steps=13_000,
        gpus=192,
        gpu_days=384,
        cost="18432.00",
        seconds_per_step=13.29,
    ),
    PublishedStage(
        name="768px T/I2V",
        resolution="768px",
        steps=13_000,
        gpus=192,
        gpu_days=1536,
        cost="73728.00",
        seconds_per_step=53.2,
    ),
)
"""The three stages of the report."""
PUBLISHED_GPU_DAYS: Final = 4160
PUBLISHED_COST: Final = "199680.00"


class RowWork(ApiModel):
    """What one step of a row of a bucket table computes, and how it is spread."""

    micro_batches: int
    """Micro-batches of the step."""
    context_parallel: int
    """GPUs that share a micro-batch."""
    flops_per_step: float
    """Model FLOPs of the step."""


class StageWork(ApiModel):
    """What one step of a stage computes, the whole world together."""

    steps: int
    """Optimizer steps, or videos of a sample stage."""
    samples_per_step: float
    """Clips of one step, mean over the bucket rows."""
    tokens_per_step: float
    """Image and text tokens of one step, mean over the bucket rows; 0 where there are none."""
    flops_per_step: float
    """Model FLOPs of one step, mean over the bucket rows."""
    rows: list[RowWork] = Field(default_factory=list)
    """The bucket rows, each step being one of them; empty for sample stages."""


class StageForecast(ApiModel):
    """Expected cost of one stage. Work is None where it depends on data that nobody has counted yet."""

    name: str
    task: str
    nodes: int
    gpus: int
    """GPUs held: the most nodes that the stage may use."""
    work: StageWork | None = None
    """None for curate and encode, whose work grows with the number of clips."""
    seconds_per_step: float | None = None
    source: Literal["given", "modelled"] | None = None
    """Where seconds_per_step comes from."""
    mfu: float | None = None
    """Model FLOPs utilisation: the stated one, or what the given time means."""
    gpu_days: float | None = None
    cost_micros: int | None = None
    cost: str | None = None
    """Decimal string in the run's currency."""
    published: PublishedStage | None = None
    """The stage of the report with the same steps, GPUs and largest resolution."""


class CostForecast(ApiModel):
    """Expected cost of a run."""

    run: str
    currency: str
    price_per_gpu_hour: str
    mfu: float
    """Stated model FLOPs utilisation."""
    peak_flops: float
    """Of one GPU, FLOP/s."""
    stages: list[StageForecast]
    gpu_days: float
    """Sum over the stages whose work is known."""
    cost_micros: int
    cost: str
    complete: bool
    """False if the work of some stage is not known; the sum leaves it out."""


def forecast(
    run: VideoTrainingRun,
    *,
    mfu: float = 0.45,
    seconds_per_step: dict[str, float] | None = None,
    peak_flops: float = PEAK_FLOPS,
) -> CostForecast:
    """Expected cost of every stage at its greatest number of nodes.

    Args:
        run: a valid manifest.
        mfu: model FLOPs utilisation, above 0 and at most 1, for stages whose step time is not given.
        seconds_per_step: known step times by stage name, seconds.
        peak_flops: dense bf16 peak of one GPU, FLOP/s.

    Raises:
        ValueError: mfu is out of range, or a step time names no stage of the run.
        ManifestError: a preset is unknown or incomplete.
    """
    given = seconds_per_step or {}
    _check_arguments(run, mfu, given)
    stages = [_stage(run, stage, mfu, given.get(stage.name), peak_flops) for stage in run.spec.stages]
    total = sum(stage.cost_micros or 0 for stage in stages)
    return CostForecast(
        run=run.metadata.name,
        currency=run.spec.pool.currency,
        price_per_gpu_hour=run.spec.pool.price_per_gpu_hour,
        mfu=mfu,
        peak_flops=peak_flops,
        stages=stages,
        gpu_days=sum(stage.gpu_days or 0.0 for stage in stages),
        cost_micros=total,
        cost=format_micros(total),
        complete=all(stage.work is not None for stage in stages),
    )


def stage_work(run: VideoTrainingRun, stage: Stage) -> StageWork | None:
    """Work of one step; None for tasks whose work depends on the number of clips.

    Raises:
        ManifestError: a preset is unknown or incomplete.
    """
    if stage.train:
        layout, buckets = stage.train.parallel, stage.train.buckets
        rows = [_train_row(run, layout, bucket) for bucket in buckets]
        samples, tokens, work = (fmean(column) for column in zip(*rows, strict=True))
        return StageWork(
            steps=stage.train.steps,
            samples_per_step=samples,
            tokens_per_step=tokens,
            flops_per_step=work,
            rows=[_row_work(layout, bucket, row[2]) for bucket, row in zip(buckets, rows, strict=True)],
        )
    if stage.autoencoder:
        return _autoencoder_work(run, stage)
    return _sample_work(run, stage.sample) if stage.sample else None


def modelled_seconds(work: StageWork, gpus: int, mfu: float, peak_flops: float = PEAK_FLOPS) -> float:
    """Time of one step on so many GPUs. Micro-batches that do not divide evenly make some GPUs wait."""
    delivered = gpus * mfu * peak_flops
    if not work.rows:
        return work.flops_per_step / delivered
    return fmean(row.flops_per_step * _waiting(row, gpus) for row in work.rows) / delivered


def _waiting(row: RowWork, gpus: int) -> float:
    """By how much a step of the row takes longer than if its micro-batches divided evenly."""
    groups = max(1, gpus // row.context_parallel)
    return -(-row.micro_batches // groups) * groups / row.micro_batches


def gpu_cost_micros(seconds: float, gpus: int, price: str) -> int:
    """What so many GPUs cost for so long, in micros."""
    return cost_micros(round(Fraction(seconds) * 1_000_000) * gpus, parse_micros(price))


def _check_arguments(run: VideoTrainingRun, mfu: float, given: dict[str, float]) -> None:
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu}; allowed: above 0 and at most 1 (0.45 for 45 %)")
    names = [stage.name for stage in run.spec.stages]
    for name, seconds in given.items():
        if name not in names:
            raise ValueError(f"seconds per step of {name!r}: no such stage; allowed: {', '.join(names)}")
        if seconds <= 0:
            raise ValueError(f"seconds per step of {name!r} is {seconds}; allowed: above 0")


def _stage(run: VideoTrainingRun, stage: Stage, mfu: float, given: float | None, peak_flops: float) -> StageForecast:
    nodes = node_counts(node_bounds(run, stage))[-1]
    gpus = nodes * run.spec.pool.gpus_per_node
    base = StageForecast(name=stage.name, task=stage.task, nodes=nodes, gpus=gpus)
    work = stage_work(run, stage)
    if work is None:
        return base
    seconds = given or modelled_seconds(work, gpus, mfu, peak_flops)
    micros = gpu_cost_micros(seconds * work.steps, gpus, run.spec.pool.price_per_gpu_hour)
    return base.model_copy(
        update={
            "work": work,
            "seconds_per_step": seconds,
            "source": "given" if given else "modelled",
            "mfu": work.flops_per_step / (seconds * gpus * peak_flops),
            "gpu_days": seconds * work.steps * gpus / 86_400,
            "cost_micros": micros,
            "cost": format_micros(micros),
            "published": _published(stage, gpus),
        }
    )


def _published(stage: Stage, gpus: int) -> PublishedStage | None:
    if stage.train is None:
        return None
    clips = [bucket.resolution for bucket in stage.train.buckets if bucket.frames > 1]
    largest = max(clips, key=aspect.side_of, default="")
    key = (stage.train.steps, gpus, largest)
    return next((row for row in PUBLISHED if (row.steps, row.gpus, row.resolution) == key), None)


def _train_row(run: VideoTrainingRun, layout: ParallelLayout, bucket: Bucket) -> tuple[int, int, int]:
    spec = run.spec
    model, autoencoder = presets.complete_transformer(spec.model), presets.complete_autoencoder(spec.autoencoder)
    image, text = flops.bucket_tokens(model, autoencoder, bucket), spec.text_encoder.max_tokens
    samples = layout.micro_batches_of(bucket) * bucket.batch_size
    shape = flops.mmdit_shape(model, autoencoder, spec.text_encoder)
    return samples, samples * (image + text), samples * flops.train_flops(shape, image, text)


def _autoencoder_work(run: VideoTrainingRun, stage: Stage) -> StageWork | None:
    task = stage.autoencoder
    if task is None:
        return None
    spec, side = presets.complete_autoencoder(run.spec.autoencoder), aspect.side_of(task.bucket.resolution)
    clip, image = (
        autoencoder_flops.autoencoder_train_flops(spec, frames, side, side) for frames in (task.bucket.frames, 1)
    )
    samples = task.parallel.micro_batches_of(task.bucket) * task.bucket.batch_size
    mean = (1 - task.image_ratio) * clip + task.image_ratio * image
    return StageWork(
        steps=task.steps,
        samples_per_step=samples,
        tokens_per_step=0,
        flops_per_step=samples * mean,
        rows=[_row_work(task.parallel, task.bucket, samples * mean)],
    )


def _row_work(layout: ParallelLayout, bucket: Bucket, flops_per_step: float) -> RowWork:
    return RowWork(
        micro_batches=layout.micro_batches_of(bucket),
        context_parallel=layout.degree_of(bucket),
        flops_per_step=flops_per_step,
    )


def _sample_work(run: VideoTrainingRun, task: SampleTask) -> StageWork:
    spec = run.spec
    model, autoencoder = presets.complete_transformer(spec.model), presets.complete_autoencoder(spec.autoencoder)
    side, text = aspect.side_of(task.resolution), spec.text_encoder.max_tokens
    image = flops.image_tokens(model, autoencoder, task.frames, side, side)
    shape = flops.mmdit_shape(model, autoencoder, spec.text_encoder)
    one = SAMPLER_PASSES * task.sampling_steps * flops.forward_flops(shape, image, text)
    one += autoencoder_flops.decoder_cost(autoencoder, task.frames, side, side).flops
    one *= task.candidates
    videos = len(task.prompts) + task.from_dataset
    return StageWork(steps=videos, samples_per_step=1, tokens_per_step=image + text, flops_per_step=one)
