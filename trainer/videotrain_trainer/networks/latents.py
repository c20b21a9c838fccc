"""Latents of clips as a run wants them: with its autoencoder, and drawn as its specification says.

Shapes: B batch, C channels, T frames, H rows, W columns (of pixels or latents).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from videotrain_api.resource.autoencoder_kinds import TimeAxis
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, Posterior
from videotrain_trainer.networks.common import seeded_generator

PosteriorUse = Literal["mode", "sample"]
"""What is taken of the distribution that an autoencoder gives; see `spec.autoencoder.posterior`."""


def encode_latents(
    autoencoder: Autoencoder, posterior: PosteriorUse | None, x_BCTHW: Tensor, seed: int, names: Sequence[Sequence[str]]
) -> list[list[Tensor]]:
    """Scaled latents of clips of one shape.

    Args:
        autoencoder: in evaluation mode.
        posterior: of `spec.autoencoder`: whether latents are sampled; a DC-AE has nothing to sample.
        x_BCTHW: pixels in [-1, 1].
        seed: of the run.
        names: of what is drawn of each clip's distribution. Seed and name alone decide what is sampled, whatever the
            rank, the order and the neighbours.

    Returns:
        For each clip its latents (C, T, H, W), one for each name.

    Raises:
        ValueError: the clips have a size that the autoencoder cannot encode.
    """
    found = autoencoder.posterior(x_BCTHW)
    if posterior != "sample" or found.logvar_BCTHW is None:
        latent_BCTHW = autoencoder.normalise(found.mean_BCTHW)
        return [[latent_BCTHW[place]] * len(mine) for place, mine in enumerate(names)]
    drawn = []
    for place, mine in enumerate(names):
        one = Posterior(found.mean_BCTHW[place : place + 1], found.logvar_BCTHW[place : place + 1])
        shape = one.mean_BCTHW.shape
        noise = (torch.randn(shape, generator=seeded_generator(seed, name)) for name in mine)
        drawn.append([autoencoder.normalise(one.sample(noise_1CTHW))[0] for noise_1CTHW in noise])
    return drawn


def time_axis(autoencoder: Autoencoder) -> TimeAxis:
    """Which lengths of clips an autoencoder codes."""
    return TimeAxis(autoencoder.config.temporal_compression, autoencoder.config.causality)
