"""Latents of clips as a run wants them: with its autoencoder, and drawn as its specification says.

Shapes: B batch, C channels, T frames, H rows, W columns (of pixels or latents).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from videotrain_api.resource.autoencoder_kinds import TimeAxis
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.common import seeded_generator

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
    found = autoencoder.posterior(x_BCTHW)
    if posterior != "sample" or not found.is_sampled:
        return autoencoder.normalise(found.mean_BCTHW)
    noise_BCTHW = torch.randn(found.mean_BCTHW.shape, generator=seeded_generator(seed, name))
    return autoencoder.normalise(found.sample(noise_BCTHW))


def time_axis(autoencoder: Autoencoder) -> TimeAxis:
    """Which lengths of clips an autoencoder codes."""
    return TimeAxis(autoencoder.config.temporal_compression, autoencoder.config.causality)
