"""What a step of a stage computes: samples, tokens and model FLOPs, and how they are spread over the GPUs.

Every row of a bucket table gets an equal share of the steps, at the size of its longest square clip.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final

from pydantic import Field

from videotrain_api.config import aspect, presets
from videotrain_api.config.text_classes import PLANNED_CAPTION_TOKENS, planned_text
from videotrain_api.cost import autoencoder_flops, flops
from videotrain_api.cost.gpus import PEAK_FLOPS
from videotrain_api.resource.stages import Bucket, ParallelLayout, SampleTask, Stage, TrainTask
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ApiModel

SAMPLER_PASSES: Final = 3
"""Forward passes per sampling step: prompt and image, image only, neither."""


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
    assumed_caption_tokens: int | None = None
    """Length of a caption where padding is not attended to; None where all are padded to the longest."""
    rows: list[RowWork] = Field(default_factory=list)
    """The bucket rows, each step being one of them; empty for sample stages."""


def stage_work(run: VideoTrainingRun, stage: Stage) -> StageWork | None:
    """Work of one step; None for tasks whose work depends on the number of clips.

    Raises:
        ManifestError: a preset is unknown or incomplete.
    """
    if stage.train:
        layout, buckets = stage.train.parallel, stage.train.buckets
        rows = [_train_row(run, stage.train, bucket) for bucket in buckets]
        samples, tokens, work = (fmean(column) for column in zip(*rows, strict=True))
        return StageWork(
            steps=stage.train.steps,
            samples_per_step=samples,
            tokens_per_step=tokens,
            flops_per_step=work,
            assumed_caption_tokens=None if stage.train.attend_padding else PLANNED_CAPTION_TOKENS,
            rows=[_row_work(layout, bucket, row[2]) for bucket, row in zip(buckets, rows, strict=True)],
        )
    if stage.autoencoder:
        return _autoencoder_work(run, stage)
    return _sample_work(run, stage.sample) if stage.sample else None


def modelled_seconds(work: StageWork, gpus: int, mfu: float, peak_flops: float = PEAK_FLOPS) -> float:
    """Time of one step at a utilisation. Micro-batches that do not divide evenly make some GPUs wait."""
    delivered = gpus * mfu * peak_flops
    if not work.rows:
        return work.flops_per_step / delivered
    return (
        fmean(row.flops_per_step * waiting(row.micro_batches, gpus // row.context_parallel) for row in work.rows)
        / delivered
    )


def waiting(micro_batches: int, groups: int) -> float:
    """By how much a step takes longer than if its micro-batches divided evenly over the groups."""
    groups = max(1, groups)
    return -(-micro_batches // groups) * groups / micro_batches


def _train_row(run: VideoTrainingRun, task: TrainTask, bucket: Bucket) -> tuple[int, int, int]:
    spec = run.spec
    model, autoencoder = presets.complete_transformer(spec.model), presets.complete_autoencoder(spec.autoencoder)
    image = flops.bucket_tokens(model, autoencoder, bucket)
    text = planned_text(task.attend_padding, spec.text_encoder.max_tokens)
    samples = task.parallel.micro_batches_of(bucket) * bucket.batch_size
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
    clip_mean = clip + task.head_ratio * autoencoder_flops.head_train_flops(spec, side, side)
    mean = (1 - task.image_ratio) * clip_mean + task.image_ratio * image
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
