"""Latents of clips as a run wants them: with its autoencoder, and drawn as its specification says.

Shapes: B batch, C channels, T frames, H rows, W columns (of pixels or latents).
"""

from __future__ import annotations

import torch
from torch import Tensor

from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE
from videotrain_trainer.networks.common import seeded_generator
from videotrain_trainer.networks.registry import Autoencoder


def encode_latents(autoencoder: Autoencoder, spec: AutoencoderSpec, x_BCTHW: Tensor, seed: int, name: str) -> Tensor:
    """Scaled latents of a clip; `spec.posterior` says whether they are sampled.

    Args:
        autoencoder: of that specification.
        spec: resolved.
        x_BCTHW: pixels in [-1, 1].
        seed: of the run.
        name: of the clip. Seed and name alone decide what is sampled, whatever the rank and the order.

    Raises:
        ValueError: the clip has a size that the autoencoder cannot encode.
    """
    if isinstance(autoencoder, DCAE):
        return autoencoder.encode(x_BCTHW)
    if spec.posterior != "sample":
        return autoencoder.encode(x_BCTHW)
    posterior = autoencoder.posterior(x_BCTHW)
    noise_BCTHW = torch.randn(posterior.mean_BCTHW.shape, generator=seeded_generator(seed, name))
    return autoencoder.scaled(posterior.sample(noise_BCTHW))
