"""What others published about training video models, and what it means by our arithmetic."""

from __future__ import annotations

from statistics import fmean
from typing import Final

from videotrain_api.config import aspect, presets
from videotrain_api.cost import flops
from videotrain_api.cost.gpus import PEAK_FLOPS
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket
from videotrain_api.schema import ApiModel


class PublishedRow(ApiModel):
    """A row of the report's throughput tables, on 8 GPUs."""

    resolution: str
    min_frames: int
    frames: int
    batch_size: int
    """Samples of one data-parallel group."""
    context_parallel: int
    """GPUs of the group."""
    samples_per_second: float

    @property
    def name(self) -> str:
        """Such as `256px 5-33f`."""
        if self.frames == 1:
            return f"{self.resolution} image"
        return f"{self.resolution} {self.min_frames}-{self.frames}f"


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
    implied_mfu: float
    """Model FLOPs utilisation that its time means, with every row of its table in as many steps; recomputation, the
    autoencoder and the text encoder, which it ran besides, do not count."""


class PublishedRun(ApiModel):
    """A line of the report's comparison with the training of other models."""

    model: str
    gpus: int
    gpu: str
    gpu_hours: float


ROWS: Final = tuple(
    PublishedRow(
        resolution=resolution,
        min_frames=shortest,
        frames=longest,
        batch_size=batch,
        context_parallel=4 if resolution == "768px" and (longest > 1 or batch == 38) else 1,
        samples_per_second=rate,
    )
    for resolution, shortest, longest, batch, rate in (
        ("256px", 1, 1, 45, 47.6),
        ("768px", 1, 1, 13, 13.8),
        ("1024px", 1, 1, 7, 7.4),
        ("256px", 5, 33, 12, 12.7),
        ("256px", 37, 65, 6, 6.3),
        ("256px", 69, 97, 4, 4.2),
        ("256px", 101, 129, 3, 3.2),
        ("768px", 1, 1, 38, 1.60),
        ("768px", 5, 33, 6, 0.25),
        ("768px", 37, 65, 4, 0.17),
        ("768px", 69, 97, 3, 0.13),
        ("768px", 101, 129, 2, 0.08),
    )
)
"""Tables 5 (the first seven) and 6 of the report."""
FIRST_STAGES, LAST_STAGE = ROWS[:7], ROWS[7:]

MODEL: Final = presets.complete_transformer(TransformerSpec(preset="mmdit-11b"))
AUTOENCODER: Final = presets.complete_autoencoder(AutoencoderSpec(preset="hunyuan-vae"))
SHAPE: Final = flops.mmdit_shape(MODEL, AUTOENCODER, TextEncoderSpec(kind="t5-clip"))
TEXT_TOKENS: Final = 512


def row_tokens(row: PublishedRow) -> int:
    """Image tokens of the longest square clip of a row."""
    side = aspect.side_of(row.resolution)
    return flops.image_tokens(MODEL, AUTOENCODER, row.frames, side, side)


def row_flops(row: PublishedRow) -> int:
    """Model FLOPs of one sample of a row, with 512 text tokens."""
    return flops.train_flops(SHAPE, row_tokens(row), TEXT_TOKENS)


def row_utilisation(row: PublishedRow) -> float:
    """Model FLOPs utilisation that a row's throughput means."""
    return row_flops(row) * row.samples_per_second / (8 * PEAK_FLOPS)


def _stage(
    name: str, resolution: str, steps: int, gpus: int, gpu_days: float, cost: str, seconds: float
) -> PublishedStage:
    rows = LAST_STAGE if resolution == "768px" else FIRST_STAGES
    per_gpu = fmean(row.batch_size * row_flops(row) / row.context_parallel for row in rows)
    return PublishedStage(
        name=name,
        resolution=resolution,
        steps=steps,
        gpus=gpus,
        gpu_days=gpu_days,
        cost=cost,
        seconds_per_step=seconds,
        implied_mfu=per_gpu / seconds / PEAK_FLOPS,
    )


PUBLISHED: Final = (
    _stage("256px T2V", "256px", 85_000, 224, 2240, "107520.00", 10.16),
    _stage("256px T/I2V", "256px", 13_000, 192, 384, "18432.00", 13.29),
    _stage("768px T/I2V", "768px", 13_000, 192, 1536, "73728.00", 53.2),
)
"""The three stages of the report."""
PUBLISHED_GPU_DAYS: Final = 4160
PUBLISHED_COST: Final = "199680.00"
OTHER_RUNS: Final = (
    PublishedRun(model="Movie Gen", gpus=6144, gpu="H100", gpu_hours=1_250_000),
    PublishedRun(model="Step-Video-T2V", gpus=2992, gpu="H800", gpu_hours=500_000),
    PublishedRun(model="Open-Sora 2.0", gpus=224, gpu="H200", gpu_hours=PUBLISHED_GPU_DAYS * 24),
)
"""Table 4 of the report; GPU-hours are its own words, and money is these hours at the price of the plan."""


def published_stage(steps: int, gpus: int, buckets: list[Bucket]) -> PublishedStage | None:
    """The stage of the report with these steps, GPUs and largest resolution of clips."""
    clips = [bucket.resolution for bucket in buckets if bucket.frames > 1]
    largest = max(clips, key=aspect.side_of, default="")
    return next((row for row in PUBLISHED if (row.steps, row.gpus, row.resolution) == (steps, gpus, largest)), None)
