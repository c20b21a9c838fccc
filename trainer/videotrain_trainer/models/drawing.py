"""`sample`: videos from prompts, with models that are already in memory.

Shapes: B videos, C channels, T frames, F given frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videotrain_api.resource.references import frames_refusal, misfits, reference_frames, refusal
from videotrain_api.resource.sampling import NO_NEGATIVE
from videotrain_trainer.data.prompts import prompt_text
from videotrain_trainer.diffusion.conditioning import Given
from videotrain_trainer.diffusion.sampler import OnStep, Sampler, TextPair
from videotrain_trainer.models.coding import decode
from videotrain_trainer.models.options import SampleOptions
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.latents import time_axis
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.sampling.draw import noise_of
from videotrain_trainer.sampling.references import encode_given, to_uint8
from videotrain_trainer.text.encoders import TextEncoder


@torch.no_grad()
def sample(
    transformer: MMDiT,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    prompt: str | Sequence[str],
    options: SampleOptions,
    *,
    reference_CFHW: Tensor | None = None,
    last_CFHW: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw a video, or several in one batch. The command `videotrain-trainer sample` draws the same from files.

    Args:
        transformer: from `build` or `load`, on its device.
        autoencoder: whose latents the transformer was trained on.
        text_encoder: whose features it was trained on; from `load_text_encoder`.
        prompt: without frame rate and motion score; one that it ends with is kept. Several prompts are computed in one
            batch, each as if it were drawn alone: from the same seed and the same given frames.
        options: size, steps, guidance, seed.
        reference_CFHW: given frames (3, F, H, W) in [-1, 1] at the size of the video: 1 for the i2v kinds, 32 or 64
            (33 or 65 for a HunyuanVideo VAE) for the v2v kinds.
        last_CFHW: last frame of `i2v_loop`; the reference itself if None.
        on_step: told after each step: steps done, steps of all.

    Returns:
        uint8 on the CPU: (T, H, W, 3) for one prompt, (B, T, H, W, 3) for a list.

    Raises:
        ValueError: sizes, features or references do not fit the models or the condition.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("prompt: an empty list; allowed: a text or at least one of them")
    shape = _latent_shape(transformer, autoencoder, options)
    given = _given(transformer, autoencoder, options, reference_CFHW, last_CFHW)
    text = _text(transformer, text_encoder, prompts, options)
    device = next(transformer.parameters()).device
    noise_BCTHW = noise_of(options.seed, shape)[None].expand(len(prompts), -1, -1, -1, -1).to(device)
    scales = options.scales(transformer.config.guidance_embed)
    sampler = Sampler(transformer, options.steps, scales, options.shift)
    latent_BCTHW = sampler.draw(noise_BCTHW, text, options.condition, given, on_step)
    videos = torch.stack([to_uint8(pixels_CTHW).cpu() for pixels_CTHW in decode(autoencoder, latent_BCTHW)])
    return videos[0] if isinstance(prompt, str) else videos


def _latent_shape(transformer: MMDiT, autoencoder: Autoencoder, options: SampleOptions) -> tuple[int, int, int, int]:
    frames, height, width = options.frames, options.height, options.width
    unit, patch = autoencoder.config.spatial_compression, transformer.config.patch_size
    channels = autoencoder.config.latent_channels
    if transformer.config.in_channels != channels * patch**2:
        raise ValueError(
            f"the transformer takes {transformer.config.in_channels} features of a token, but {channels} latent "
            f"channels in patches of {patch} x {patch} are {channels * patch**2}: it was made for another autoencoder"
        )
    if height % (unit * patch) or width % (unit * patch):
        raise ValueError(f"{height} x {width} pixels: both must be multiples of {unit * patch}")
    if autoencoder.pictures_only and frames > 1:
        raise ValueError(f"{frames} frames: this autoencoder codes pictures; allowed: 1")
    time = time_axis(autoencoder)
    refused = frames_refusal(frames, time)
    if refused:
        raise ValueError(f"{frames} frames: {refused}")
    return channels, time.latent_frames(frames), height // unit, width // unit


def _given(
    transformer: MMDiT,
    autoencoder: Autoencoder,
    options: SampleOptions,
    reference: Tensor | None,
    last: Tensor | None,
) -> Given:
    kind, video = options.condition, options.condition.startswith("v2v")
    given = {"image": None if video else reference, "video": reference if video else None, "last_image": last}
    for misfit in misfits(kind, given):
        present = "not given" if given[misfit.field] is None else "given"
        raise ValueError(f"condition {kind!r} and the {misfit.field} is {present}: {misfit.allowed}")
    time = time_axis(autoencoder)
    refused = refusal(kind, options.frames, time, transformer.config.cond_embed)
    if refused:
        raise ValueError(f"condition {kind!r}: {refused}")
    if reference is None or autoencoder.pictures_only:  # the latter draws pictures, which take none
        return Given()
    expected = (3, reference_frames(kind, time), options.height, options.width)
    for part in (reference, last):
        if part is not None and (tuple(part.shape) != expected or not part.is_floating_point()):
            raise ValueError(
                f"a reference of shape {list(part.shape)} and {part.dtype}: it must be {list(expected)}, "
                "floating-point numbers in [-1, 1]"
            )
    return encode_given(kind, autoencoder, options.posterior, reference, last, options.seed)


def _text(transformer: MMDiT, encoder: TextEncoder, prompts: Sequence[str], options: SampleOptions) -> TextPair:
    config, device = transformer.config, next(transformer.parameters()).device
    if options.negative_prompt and config.guidance_embed:
        raise ValueError(f"negative_prompt: {options.negative_prompt!r}: {NO_NEGATIVE}")
    fps, motion = (None, None) if options.frames == 1 else (options.fps, options.motion_score)
    texts = [prompt_text(prompt, options.prompt_style, fps, motion) for prompt in prompts]
    features = encoder.encode([*texts, options.negative_prompt])
    context, pooled = features.context_BLD.to(device), features.pooled_BP.to(device)
    widths, taken = (context.shape[-1], pooled.shape[-1]), (config.context_dim, config.pooled_dim)
    if widths != taken:
        raise ValueError(
            f"the text encoder gives features of {widths[0]} and {widths[1]} numbers, the transformer takes {taken[0]} "
            f"and {taken[1]}: it was made for another text encoder"
        )
    count = len(texts)
    return TextPair(
        context_BLD=context[:count],
        pooled_BP=pooled[:count],
        negative_context_BLD=context[count:].expand(count, -1, -1),
        negative_pooled_BP=pooled[count:].expand(count, -1),
    )
