"""Work of one micro-batch by formula: samples, tokens, and FLOPs as three ways of counting have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from videotrain_api.cost.autoencoder_flops import autoencoder_train_flops, head_train_flops
from videotrain_api.cost.flops import MmditShape, recomputed_flops, train_flops
from videotrain_api.resource.architecture import AutoencoderSpec


@dataclass(frozen=True)
class MicroBatchWork:
    """What a micro-batch takes."""

    samples: int
    tokens: int
    """Image and text tokens; 0 where there are none."""
    model_flops: float
    """Forward and backward; recomputation is not counted."""
    hardware_flops: float
    """The same with what is computed again in the backward pass."""
    useful_flops: float
    """Forward and backward as if no text were padded."""


def together(works: Sequence[MicroBatchWork]) -> MicroBatchWork:
    """The work of several micro-batches, or of none."""
    return MicroBatchWork(*(sum(column) for column in zip(*map(astuple, works), strict=True))) if works else NO_WORK


NO_WORK = MicroBatchWork(0, 0, 0.0, 0.0, 0.0)


def transformer_work(
    shape: MmditShape,
    latent_BCTHW: Sequence[int],
    patch: int,
    text_tokens: int,
    captions: Sequence[int],
    recomputed: tuple[int, int],
) -> MicroBatchWork:
    """Work of a micro-batch of latents of that shape, text padding included since it is attended to.

    Args:
        shape: of the model.
        latent_BCTHW: shape of the latents.
        patch: of the model.
        text_tokens: of every sample, padding included.
        captions: tokens of each sample without padding.
        recomputed: two-stream and one-stream blocks that are computed again in the backward pass.
    """
    samples, _, frames, rows, columns = latent_BCTHW
    image = frames * (rows // patch) * (columns // patch)
    flops = samples * train_flops(shape, image, text_tokens)
    return MicroBatchWork(
        samples=samples,
        tokens=samples * (image + text_tokens),
        model_flops=float(flops),
        hardware_flops=float(flops + samples * recomputed_flops(shape, image + text_tokens, *recomputed)),
        useful_flops=float(sum(train_flops(shape, image, min(caption, text_tokens)) for caption in captions)),
    )


def autoencoder_work(
    spec: AutoencoderSpec, video_BCTHW: Sequence[int], *, lone_head: bool = False, recompute: bool
) -> MicroBatchWork:
    """Work of a micro-batch of pixels of that shape, whose first frames are encoded by themselves, too, or not.

    With recomputation the whole forward pass counts as done twice; the last block, which is not, is a small part of it.
    """
    samples, _, frames, rows, columns = video_BCTHW
    one = autoencoder_train_flops(spec, frames, rows, columns)
    flops = float(samples * (one + (head_train_flops(spec, rows, columns) if lone_head else 0)))
    return MicroBatchWork(
        samples=samples,
        tokens=0,
        model_flops=flops,
        hardware_flops=flops * 4 / 3 if recompute else flops,
        useful_flops=flops,
    )
