"""What curating and encoding videos costs, from the hours of video: modelled from counts and measured CPU seconds.

Curation works on every core of its nodes. An encoded clip is decoded once, by the cores beside a GPU, while the GPU
encodes the clips before it: it takes as long as the slower of the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from videotrain_api.config import aspect
from videotrain_api.config.presets import complete_autoencoder
from videotrain_api.config.resolve import latent_readers
from videotrain_api.config.stage_config import LatentReader
from videotrain_api.cost.autoencoder_flops import encoder_cost
from videotrain_api.cost.text_encoding import text_flops
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import Bucket, Stage
from videotrain_api.schema import ApiModel

CURATE_SECONDS: Final = 0.63
"""CPU seconds of one core per second of 720p video: probe, shots, scores, normalised files. Measured."""
SHOT_NETWORK_SECONDS: Final = 0.68
"""The same for TransNet V2 at 30 frames per second, where it finds the shots. Measured."""
IMAGE_MODEL_SECONDS: Final = 10.0
"""CPU seconds of one core per clip for CLIP-L/14 over three frames: 0.5 TFLOP. Assumed; a GPU needs none."""
DECODE_SECONDS: Final = 1.9e-3
"""CPU seconds of one core per frame of 720p to decode it. Measured."""
RESIZE_SECONDS: Final[dict[bool, float]] = {False: 2.5e-3, True: 7.6e-3}
"""CPU seconds of one core per frame to scale it to a small or (True) a large class, beside decoding. Measured."""
CORES: Final = 12
"""That decode beside each GPU, where the pool does not say. Assumed: 96 of a node of 8."""
LARGE: Final = 512
"""Pixels of the side from which a class is large."""
ENCODE_FLOPS: Final = 200e12
"""FLOP/s of autoencoder and text encoder. Assumed."""
FPS: Final = 24
"""Frame rate of the clips."""
CLIP_SECONDS: Final = 8.0
"""Of clips that were curated elsewhere."""


@dataclass(frozen=True)
class ClipEncoding:
    """What encoding one clip takes, for all stages that read it, on the average over the draws of keepProbability."""

    samples: float
    """Windows of the clip that some stage takes."""
    texts: float
    """Captions that are encoded: with rate and motion for videos, without for pictures. Those that train stages encode
    themselves are not."""
    core_seconds: float
    """Of one core: one pass over the clip, each frame scaled once to each size."""
    gpu_seconds: float
    """Of autoencoder and text encoder."""


class Preparation(ApiModel):
    """What making the data of a run from raw videos takes."""

    hours_of_video: float
    clips: float
    """If everything is kept."""
    samples_per_clip: float
    """Windows of a clip that a stage takes, which are those that are encoded."""
    texts_per_clip: float
    """Captions that are encoded."""
    curate_core_hours: float
    """Of one core."""
    image_model_core_hours: float
    """Of one core, where no GPU runs the image model that looks at clips."""
    encode_core_hours: float
    """Of one core that decodes."""
    encode_gpu_hours: float
    """Of one GPU that never waits for a core."""

    def node_hours(self, task: str, pool: Pool) -> float | None:
        """Of nodes of a pool that curate or encode all of it; None for other tasks, and if nobody says how many cores
        they have.

        Without a number of cores curation has one beside each GPU, and encoding CORES.
        """
        if task == "encode":
            if not pool.gpus_per_node:
                return None
            cores = pool.cores or CORES * pool.gpus_per_node
            return max(self.encode_core_hours / cores, self.encode_gpu_hours / pool.gpus_per_node)
        if task != "curate":
            return None
        cores = pool.cores or pool.gpus_per_node
        looking = 0 if pool.gpus_per_node else self.image_model_core_hours
        return (self.curate_core_hours + looking) / cores if cores else None


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
    one = clip_encoding(latent_readers(stages, index, 0), autoencoder, text, seconds)
    clips = 3600 * hours_of_video / seconds
    return Preparation(
        hours_of_video=hours_of_video,
        clips=clips,
        samples_per_clip=one.samples,
        texts_per_clip=one.texts,
        curate_core_hours=hours_of_video * _curate_seconds(stages),
        image_model_core_hours=clips * IMAGE_MODEL_SECONDS / 3600 if _has_image_model(stages) else 0.0,
        encode_core_hours=clips * one.core_seconds / 3600,
        encode_gpu_hours=clips * one.gpu_seconds / 3600,
    )


def _curate_seconds(stages: Sequence[Stage]) -> float:
    """CPU seconds of one core per second of video."""
    network = any(stage.curate and stage.curate.shot_detector == "transnetv2" for stage in stages)
    return CURATE_SECONDS + (SHOT_NETWORK_SECONDS if network else 0)


def _has_image_model(stages: Sequence[Stage]) -> bool:
    return any(stage.curate and stage.curate.image_model for stage in stages)


def clip_encoding(
    readers: Sequence[LatentReader], autoencoder: AutoencoderSpec, text: TextEncoderSpec, clip_seconds: float
) -> ClipEncoding:
    """What one clip takes that is large enough for every row, and within the selection of every stage.

    Args:
        readers: the stages that read the set.
        autoencoder: may name a preset.
        text: of the captions.
        clip_seconds: length of the clip at 24 frames per second.
    """
    spec = complete_autoencoder(autoencoder)
    frames = round(clip_seconds * FPS)
    samples = flops = 0.0
    last: defaultdict[str, float] = defaultdict(float)
    """Frames that are decoded and scaled, by size."""
    for row, chance in _chances(readers, frames, spec.temporal_compression):
        side, found = aspect.side_of(row.resolution), _windows(row, frames, spec.temporal_compression)
        samples += chance * len(found)
        last[row.resolution] = max(last[row.resolution], chance * sum(found))
        ends = 2 * _encoder_flops(spec, 1, side) if row.frames > 1 else 0  # the first and the last frame by themselves
        flops += chance * sum(_encoder_flops(spec, length, side) + ends for length in found)
    texts = _texts(readers, frames, spec.temporal_compression)
    flops += texts * text_flops(text, text.max_tokens)
    scaled = sum(count * RESIZE_SECONDS[aspect.side_of(size) >= LARGE] for size, count in last.items())
    return ClipEncoding(
        samples=samples,
        texts=texts,
        core_seconds=max(last.values(), default=0.0) * DECODE_SECONDS + scaled,
        gpu_seconds=flops / ENCODE_FLOPS,
    )


def _texts(readers: Sequence[LatentReader], frames: int, step: int) -> float:
    """Captions that are encoded: of a clip's video and of its picture, if a stage that reads text features takes it."""
    untaken = {False: 1.0, True: 1.0}
    for row, chance in _chances([reader for reader in readers if reader.text == "stored"], frames, step):
        untaken[row.frames > 1] *= 1 - chance
    return 2 - sum(untaken.values())


def _chances(readers: Sequence[LatentReader], frames: int, step: int) -> list[tuple[Bucket, float]]:
    """Rows that a clip fits, each size once, and the chance that some stage takes the clip in it."""
    untaken: dict[tuple[object, ...], tuple[Bucket, float]] = {}
    for reader in readers:
        fits = [row for row in reader.buckets if _windows(row, frames, step)]
        longest: dict[int, Bucket] = {}
        for row in sorted(fits, key=lambda row: row.frames):
            if row.frames > 1:
                longest[aspect.side_of(row.resolution)] = row
        chances = [(row, row.keep_probability) for row in fits if row.frames == 1]
        left = 1.0  # a video goes to the largest size, and to the next smaller one if its draw fails
        for _, row in sorted(longest.items(), reverse=True):
            chances.append((row, left * row.keep_probability))
            left *= 1 - row.keep_probability
        for row, chance in chances:
            key = (row.resolution, row.frames, row.min_frames, tuple(row.aspect_ratios or ()))
            untaken[key] = row, untaken.get(key, (row, 1.0))[1] * (1 - chance)
    return [(row, 1 - chance) for row, chance in untaken.values() if chance < 1]


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
