"""`encode` and `decode`: pixels to latents and back, with any autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor

from videotrain_trainer.networks.autoencoders.interface import Autoencoder

PIXEL_CHANNELS = 3


@torch.no_grad()
def encode(autoencoder: Autoencoder, video_BCTHW: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Pixels to latents, scaled as transformers are given them.

    Clips are coded one after another, in tiles if the autoencoder's configuration has them, so memory does not grow
    with their number.

    Args:
        autoencoder: in evaluation mode.
        video_BCTHW: (B, 3, T, H, W) in [-1, 1] on any device. T is 1 + 4k for a HunyuanVideo VAE; 1, 2 or a multiple of
            4 for a DC-AE; H and W are multiples of the spatial compression (8 and 32 at the published sizes).
        generator: samples the latents of a HunyuanVideo VAE from their distribution, on the CPU; the mode of the
            distribution if None. A DC-AE has none and refuses it.

    Returns:
        (B, C, T', H', W') float32, on the autoencoder's device.

    Raises:
        ValueError: numbers or sizes cannot be encoded, or the autoencoder has nothing to sample.
    """
    _check(video_BCTHW, "a video", PIXEL_CHANNELS)
    return torch.cat([_encode_one(autoencoder, clip[None], generator) for clip in video_BCTHW])


def _encode_one(autoencoder: Autoencoder, clip_1CTHW: Tensor, generator: torch.Generator | None) -> Tensor:
    like = next(autoencoder.parameters())
    posterior = autoencoder.posterior(clip_1CTHW.to(like.device, like.dtype))
    if generator is None:
        return autoencoder.normalise(posterior.mean_BCTHW).float()
    if not posterior.is_sampled:
        raise ValueError(f"a {type(autoencoder).__name__} gives one latent for a clip; leave the generator out")
    noise = torch.randn(posterior.mean_BCTHW.shape, generator=generator).to(like.device, like.dtype)
    return autoencoder.normalise(posterior.sample(noise)).float()


@torch.no_grad()
def decode(autoencoder: Autoencoder, latent_BCTHW: Tensor) -> Tensor:
    """Latents to pixels, one clip after another.

    Args:
        autoencoder: in evaluation mode.
        latent_BCTHW: scaled, as `encode` and the sampler give them.

    Returns:
        (B, 3, T, H, W) float32, about in [-1, 1], on the autoencoder's device. T is 1 + 4 * (T' - 1) for a HunyuanVideo
        VAE; 4 * T' for a DC-AE, and 1 for its single latent frame.

    Raises:
        ValueError: these are no latents of that autoencoder.
    """
    _check(latent_BCTHW, "latents", autoencoder.config.latent_channels)
    like = next(autoencoder.parameters())
    clips = [autoencoder.decode(latent[None].to(like.device, like.dtype)) for latent in latent_BCTHW]
    return torch.cat(clips).float()


def _check(values: Tensor, what: str, channels: int) -> None:
    if not values.is_floating_point():
        raise ValueError(
            f"{what} of {values.dtype}: floating-point numbers are needed, pixels in [-1, 1]; for uint8 take "
            "video.float() / 127.5 - 1"
        )
    if values.ndim != 5 or values.shape[1] != channels or not len(values):
        raise ValueError(f"{what} of shape {list(values.shape)}: it must be (B, {channels}, T, H, W) with B from 1 on")
