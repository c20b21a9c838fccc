"""Work of one micro-batch by formula: samples, tokens and model FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videotrain_api.cost.autoencoder_flops import autoencoder_train_flops
from videotrain_api.cost.flops import MmditShape, train_flops
from videotrain_api.resource.architecture import AutoencoderSpec


@dataclass(frozen=True)
class MicroBatchWork:
    """What a micro-batch takes."""

    samples: int
    tokens: int
    """Image and text tokens; 0 where there are none."""
    model_flops: float
    """Forward and backward; recomputation is not counted."""


def transformer_work(shape: MmditShape, latent_BCTHW: Sequence[int], patch: int, text_tokens: int) -> MicroBatchWork:
    """Work of a micro-batch of latents of that shape, text padding included since it is attended to."""
    samples, _, frames, rows, columns = latent_BCTHW
    image = frames * (rows // patch) * (columns // patch)
    return MicroBatchWork(
        samples=samples,
        tokens=samples * (image + text_tokens),
        model_flops=float(samples * train_flops(shape, image, text_tokens)),
    )


def autoencoder_work(spec: AutoencoderSpec, video_BCTHW: Sequence[int]) -> MicroBatchWork:
    """Work of a micro-batch of pixels of that shape."""
    samples, _, frames, rows, columns = video_BCTHW
    flops = samples * autoencoder_train_flops(spec, frames, rows, columns)
    return MicroBatchWork(samples=samples, tokens=0, model_flops=float(flops))
