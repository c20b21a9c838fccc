"""Latents of clips as a run wants them: with its autoencoder, and drawn as its specification says.

Shapes: B batch, C channels, T frames, H rows, W columns (of pixels or latents).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from videotrain_trainer.networks.autoencoders.dc_ae import DCAE
from videotrain_trainer.networks.common import seeded_generator
from videotrain_trainer.networks.registry import Autoencoder

PosteriorUse = Literal["mode", "sample"]
"""What is taken of the distribution that an autoencoder gives; see `spec.autoencoder.posterior`."""


def encode_latents(
    autoencoder: Autoencoder, posterior: PosteriorUse | None, x_BCTHW: Tensor, seed: int, name: str
) -> Tensor:
    """Scaled latents of a clip.

    Args:
        autoencoder: in evaluation mode.
        posterior: of `spec.autoencoder`: whether latents are sampled; a DC-AE has nothing to sample.
        x_BCTHW: pixels in [-1, 1].
        seed: of the run.
        name: of the clip. Seed and name alone decide what is sampled, whatever the rank and the order.

    Raises:
        ValueError: the clip has a size that the autoencoder cannot encode.
    """
    if isinstance(autoencoder, DCAE) or posterior != "sample":
        return autoencoder.encode(x_BCTHW)
    drawn = autoencoder.posterior(x_BCTHW)
    noise_BCTHW = torch.randn(drawn.mean_BCTHW.shape, generator=seeded_generator(seed, name))
    return autoencoder.scaled(drawn.sample(noise_BCTHW))
