"""`sample`: a video from a prompt, with models that are already in memory.

Shapes: C channels, T frames, F given frames, H rows, W columns.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from videotrain_api.resource.stages import ConditionKind, PromptStyle
from videotrain_trainer.data.prompts import prompt_text
from videotrain_trainer.diffusion.conditioning import Given, reference_frames, takes_head, takes_tail
from videotrain_trainer.diffusion.sampler import Guidance, OnStep, Sampler, TextPair
from videotrain_trainer.models.coding import decode, encode
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import Autoencoder
from videotrain_trainer.sampling.draw import noise_of
from videotrain_trainer.sampling.references import to_uint8
from videotrain_trainer.text.encoders import TextEncoder

TIME_COMPRESSION = 4
"""Frames per latent frame of both autoencoders."""


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
    steps: int = 50,
    guidance: Guidance | None = None,
    fps: float | None = 24,
    motion_score: float | None = 4,
    prompt_style: PromptStyle = "fps-motion",
    shift: float | None = None,
    seed: int = 42,
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
        guidance: scales; text 7.5 and image 3.0 if None. For a distilled model `text` is its guidance input.
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
    sampler = Sampler(transformer, steps, guidance or Guidance(text=7.5, image=3.0), shift)
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
    causal = isinstance(autoencoder, HunyuanVAE)
    fits = frames == 1 or (frames % TIME_COMPRESSION == 1 if causal else frames >= 8 and frames % TIME_COMPRESSION == 0)
    if not fits or frames < 1:
        allowed = "1 + 4k" if causal else "1 or a multiple of 4 from 8 on"
        raise ValueError(f"{frames} frames: this autoencoder decodes to {allowed}")
    latent_frames = (frames - 1) // TIME_COMPRESSION + 1
    return channels, latent_frames, height // unit, width // unit


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
    if (kind == "t2v") != (reference is None) or (last is not None and kind != "i2v_loop"):
        raise ValueError(
            f"condition {kind}: a reference is {'not given' if reference is None else 'given'} and a last frame is "
            f"{'not given' if last is None else 'given'}; t2v takes neither, all others a reference, i2v_loop both"
        )
    if reference is None:
        return Given()
    if not transformer.config.cond_embed:
        raise ValueError(f"condition {kind} needs a transformer with a condition input")
    count = reference_frames(kind, isinstance(autoencoder, HunyuanVAE))
    encoded = [_reference(autoencoder, part, count, size) for part in (reference, last) if part is not None]
    head = encoded[0] if takes_head(kind) else None
    return Given(head, encoded[-1] if takes_tail(kind) else None)


def _reference(autoencoder: Autoencoder, pixels_CFHW: Tensor, count: int, size: tuple[int, int, int]) -> Tensor:
    frames, height, width = size
    if tuple(pixels_CFHW.shape) != (3, count, height, width) or count >= frames:
        raise ValueError(
            f"a reference of shape {list(pixels_CFHW.shape)} for a video of {frames} frames: it must be "
            f"{[3, count, height, width]}, and the video longer"
        )
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
