"""What curating and encoding videos costs, from the hours of video: modelled from counts and measured CPU seconds.

Curation works on every core of its nodes. Encoding holds GPUs: a worker process stands beside each, and decodes on one
core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from videotrain_api.config import aspect
from videotrain_api.config.presets import complete_autoencoder
from videotrain_api.config.resolve import encode_buckets
from videotrain_api.cost.autoencoder_flops import encoder_cost
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import Bucket, Stage
from videotrain_api.schema import ApiModel

CURATE_SECONDS: Final = 0.63
"""CPU seconds of one core per second of 720p video: probe, shots, scores, normalised files. Measured."""
DECODE_SECONDS: Final[dict[bool, float]] = {False: 4.4e-3, True: 9.5e-3}
"""CPU seconds per frame to decode 720p and scale it to a small or (True) a large class. Measured, one core."""
LARGE: Final = 512
"""Pixels of the side from which a class is large."""
ENCODE_FLOPS: Final = 200e12
"""FLOP/s of autoencoder and text encoder at batch 1. Assumed."""
T5_FLOPS_PER_TOKEN: Final = 2 * 4.76e9
"""Of the encoder of T5 v1.1 XXL."""
FPS: Final = 24
"""Frame rate of the clips."""
CLIP_SECONDS: Final = 8.0
"""Of clips that were curated elsewhere."""


@dataclass(frozen=True)
class ClipEncoding:
    """What encoding one clip takes, for all rows of the stages that read it."""

    samples: int
    """Windows of the clip that are encoded."""
    decodes: int
    """Times that the clip is decoded: once for every length and class."""
    seconds: float
    """Of one GPU and its core, one after the other."""


class Preparation(ApiModel):
    """What making the data of a run from raw videos takes."""

    hours_of_video: float
    clips: float
    """If everything is kept."""
    samples_per_clip: int
    """Windows of a clip that are encoded, whether a stage takes them or not."""
    curate_core_hours: float
    """Of one core."""
    encode_gpu_hours: float

    def node_hours(self, task: str, pool: Pool) -> float | None:
        """Of nodes of a pool that curate or encode all of it; None if nobody says how many cores they have.

        Curation without a number of cores has one beside each GPU.
        """
        if task == "encode":
            return self.encode_gpu_hours / pool.gpus_per_node if pool.gpus_per_node else None
        cores = pool.cores or pool.gpus_per_node
        return self.curate_core_hours / cores if cores else None


def preparation(
    hours_of_video: float, stages: Sequence[Stage], autoencoder: AutoencoderSpec, text: TextEncoderSpec, index: int = -1
) -> Preparation:
    """What curating so many hours of raw video and encoding the clips takes.

    Args:
        hours_of_video: of raw video.
        stages: of the run; curation says how long clips are.
        autoencoder: may name a preset.
        text: of the captions.
        index: of the encode stage; -1 encodes for all train stages.
    """
    seconds = next((stage.curate.max_seconds for stage in stages if stage.curate), CLIP_SECONDS)
    one = clip_encoding(encode_buckets(stages, index), autoencoder, text, seconds)
    clips = 3600 * hours_of_video / seconds
    return Preparation(
        hours_of_video=hours_of_video,
        clips=clips,
        samples_per_clip=one.samples,
        curate_core_hours=hours_of_video * CURATE_SECONDS,
        encode_gpu_hours=clips * one.seconds / 3600,
    )


def clip_encoding(
    rows: Sequence[Bucket], autoencoder: AutoencoderSpec, text: TextEncoderSpec, clip_seconds: float
) -> ClipEncoding:
    """What one clip takes that is large enough for every row.

    Args:
        rows: bucket rows of the stages to come, each size once.
        autoencoder: may name a preset.
        text: of the captions.
        clip_seconds: length of the clip at 24 frames per second.
    """
    spec = complete_autoencoder(autoencoder)
    frames = round(clip_seconds * FPS)
    found = [(row.resolution, length) for row in rows for length in _windows(row, frames, spec.temporal_compression)]
    seconds = 0.0
    for resolution, length in found:
        side = aspect.side_of(resolution)
        seconds += _encoder_flops(spec, length, side) / ENCODE_FLOPS
    decoded = set(found)
    for resolution, _ in decoded:
        seconds += frames * DECODE_SECONDS[aspect.side_of(resolution) >= LARGE]
        if text.kind == "t5-clip":
            seconds += T5_FLOPS_PER_TOKEN * text.max_tokens / ENCODE_FLOPS
    return ClipEncoding(len(found), len(decoded), seconds)


def _encoder_flops(spec: AutoencoderSpec, frames: int, side: int) -> int:
    if spec.kind == "diffusers":
        # Of these the decoder alone is counted, which is the larger half.
        return (spec.decode_flops_per_pixel or 0) * frames * side * side
    return encoder_cost(spec, frames, side, side).flops


def _windows(row: Bucket, frames: int, step: int) -> list[int]:
    """Lengths of the windows of a clip that a row takes: from its start, each as long as possible."""
    if row.frames == 1:
        return [1]
    shortest, left, found = row.min_frames or row.frames, frames, []
    while left >= shortest:
        length = row.frames - max(0, -(-(row.frames - left) // step)) * step
        if length < shortest:
            break
        found.append(length)
        left -= length
    return found
