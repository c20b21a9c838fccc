"""`sample`: a video from a prompt, with models that are already in memory.

Shapes: C channels, T frames, F given frames, H rows, W columns.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from videotrain_api.resource import sampling
from videotrain_api.resource.autoencoder_kinds import TimeAxis
from videotrain_api.resource.references import (
    frames_refusal,
    misfits,
    reference_frames,
    refusal,
    takes_head,
    takes_tail,
)
from videotrain_api.resource.stages import ConditionKind, PromptStyle
from videotrain_trainer.data.prompts import prompt_text
from videotrain_trainer.diffusion.conditioning import Given
from videotrain_trainer.diffusion.sampler import Guidance, OnStep, Sampler, TextPair
from videotrain_trainer.models.coding import decode, encode
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import Autoencoder
from videotrain_trainer.sampling.draw import noise_of
from videotrain_trainer.sampling.references import to_uint8
from videotrain_trainer.text.encoders import TextEncoder


@torch.no_grad()
def sample(
    transformer: MMDiT,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    prompt: str,
    *,
    height: int,
    width: int,
    frames: int,
    condition: ConditionKind = "t2v",
    reference_CFHW: Tensor | None = None,
    last_CFHW: Tensor | None = None,
    negative_prompt: str = "",
    steps: int = sampling.STEPS,
    guidance: Guidance | None = None,
    fps: float | None = sampling.FPS,
    motion_score: float | None = sampling.MOTION_SCORE,
    prompt_style: PromptStyle = "fps-motion",
    shift: float | None = None,
    seed: int = sampling.SEED,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw one video. The command `videotrain-trainer sample` draws batches from files with the same sampler.

    Args:
        transformer: from `build` or `load`, on its device.
        autoencoder: whose latents the transformer was trained on.
        text_encoder: whose features it was trained on; see `videotrain_trainer.text.encoders`.
        prompt: without frame rate and motion score.
        height: pixels; a multiple of the spatial compression times the transformer's patch.
        width: the same.
        frames: 1 + 4k for a HunyuanVideo VAE; 1, or a multiple of 4 from 8 on, for a DC-AE.
        condition: which frames are given, as in training.
        reference_CFHW: given frames (3, F, H, W) in [-1, 1] at the size of the video: 1 for the i2v kinds, 32 or 64
            (33 or 65 for a HunyuanVideo VAE) for the v2v kinds.
        last_CFHW: last frame of `i2v_loop`; the reference itself if None.
        negative_prompt: what guidance leads away from.
        steps: Euler steps.
        guidance: the resource's default scales if None. For a distilled model `text` is its guidance input.
        fps: frame rate that the text tells; None leaves it out.
        motion_score: motion score that the text tells; None leaves it out.
        prompt_style: which of the two the model was trained with.
        shift: alpha of the time shift; by the size of the video, as in training, if None.
        seed: of the noise.
        on_step: told after each step: steps done, steps of all.

    Returns:
        (T, H, W, 3) uint8 on the CPU.

    Raises:
        ValueError: sizes or references do not fit the models or the condition.
    """
    shape = _latent_shape(transformer, autoencoder, frames, height, width)
    given = _given(transformer, autoencoder, condition, (frames, height, width), reference_CFHW, last_CFHW)
    device = next(transformer.parameters()).device
    text = _text(text_encoder, [prompt_text(prompt, prompt_style, fps, motion_score), negative_prompt], device)
    noise_1CTHW = noise_of(seed, shape)[None].to(device)
    guidance = guidance or Guidance(text=sampling.TEXT_GUIDANCE, image=sampling.IMAGE_GUIDANCE)
    sampler = Sampler(transformer, steps, guidance, shift)
    latent_1CTHW = sampler.draw(noise_1CTHW, text, condition, given, on_step)
    return to_uint8(decode(autoencoder, latent_1CTHW)[0]).cpu()


def _latent_shape(
    transformer: MMDiT, autoencoder: Autoencoder, frames: int, height: int, width: int
) -> tuple[int, int, int, int]:
    unit, patch = autoencoder.config.spatial_compression, transformer.config.patch_size
    channels = autoencoder.config.latent_channels
    if transformer.config.in_channels != channels * patch**2:
        raise ValueError(
            f"the transformer takes {transformer.config.in_channels} features of a token, but {channels} latent "
            f"channels in patches of {patch} x {patch} are {channels * patch**2}: it was made for another autoencoder"
        )
    if height % (unit * patch) or width % (unit * patch):
        raise ValueError(f"{height} x {width} pixels: both must be multiples of {unit * patch}")
    time = _time(autoencoder)
    refused = frames_refusal(frames, time)
    if refused:
        raise ValueError(f"{frames} frames: {refused}")
    return channels, time.latent_frames(frames), height // unit, width // unit


def _time(autoencoder: Autoencoder) -> TimeAxis:
    return TimeAxis(4, "causal" if isinstance(autoencoder, HunyuanVAE) else "none")


def _given(
    transformer: MMDiT,
    autoencoder: Autoencoder,
    kind: ConditionKind,
    size: tuple[int, int, int],
    reference: Tensor | None,
    last: Tensor | None,
) -> Given:
    if kind not in get_args(ConditionKind):
        raise ValueError(f"condition {kind!r} is unknown; allowed: {', '.join(get_args(ConditionKind))}")
    video = kind.startswith("v2v")
    given = {"image": None if video else reference, "video": reference if video else None, "last_image": last}
    for misfit in misfits(kind, given):
        present = "not given" if given[misfit.field] is None else "given"
        raise ValueError(f"condition {kind!r} and the {misfit.field} is {present}: {misfit.allowed}")
    time = _time(autoencoder)
    refused = refusal(kind, size[0], time, transformer.config.cond_embed)
    if refused:
        raise ValueError(f"condition {kind!r}: {refused}")
    if reference is None:
        return Given()
    count = reference_frames(kind, time)
    encoded = [_reference(autoencoder, part, count, size[1:]) for part in (reference, last) if part is not None]
    head = encoded[0] if takes_head(kind) else None
    return Given(head, encoded[-1] if takes_tail(kind) else None)


def _reference(autoencoder: Autoencoder, pixels_CFHW: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    height, width = size
    if tuple(pixels_CFHW.shape) != (3, count, height, width):
        raise ValueError(f"a reference of shape {list(pixels_CFHW.shape)}: it must be {[3, count, height, width]}")
    return encode(autoencoder, pixels_CFHW[None])[0]


def _text(encoder: TextEncoder, texts: list[str], device: torch.device) -> TextPair:
    features = encoder.encode(texts)
    context, pooled = features.context_BLD.to(device), features.pooled_BP.to(device)
    return TextPair(
        context_1LD=context[:1],
        pooled_1P=pooled[:1],
        negative_context_1LD=context[1:],
        negative_pooled_1P=pooled[1:],
    )
