"""How strongly the discriminator pulls at the autoencoder: the adaptive weight of the adversarial loss.

The published recipe sums the reconstruction loss over the C * H * W values of a frame; here it is their mean, so that
losses of different resolutions compare. AdamW does not see a constant factor, but the adaptive weight does, by its
epsilon and its bound. It is therefore computed on the published scale and brought back.

Shape letters: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.grad import conv3d_weight

EPSILON = 1e-4
BOUND = 1e4
"""Of the ratio of the two gradients, at the published scale of the reconstruction loss."""


@dataclass(frozen=True)
class AdversarialLoss:
    """Losses of one micro-batch in the adversarial phase; goes where other stages have a scalar tensor."""

    reconstruction: Tensor
    """Scalar, without a graph: mean absolute error plus weighted perceptual loss. This is what is reported."""
    autoencoder: Tensor
    """Scalar whose gradient is that of reconstruction and weighted adversarial loss; its value means nothing."""
    discriminator: Tensor
    """Scalar: what the discriminator minimises."""

    def __mul__(self, factor: float) -> AdversarialLoss:
        return AdversarialLoss(self.reconstruction * factor, self.autoencoder * factor, self.discriminator * factor)

    def detach(self) -> Tensor:
        """The loss that is reported: the reconstruction's, without its gradient."""
        return self.reconstruction.detach()


def adaptive_weight(reconstruction_norm: Tensor, adversarial_norm: Tensor, values_per_frame: int) -> Tensor:
    """Factor on the adversarial loss that makes its pull at the last layer as strong as the reconstruction's.

    min(r / (a + 1e-4), 1e4) of the published scale, where r is `values_per_frame` times ours.

    Args:
        reconstruction_norm: norm of the gradient of the mean reconstruction loss at the last layer's weight.
        adversarial_norm: the same of the adversarial loss.
        values_per_frame: C * H * W.
    """
    published = reconstruction_norm * values_per_frame / (adversarial_norm + EPSILON)
    return published.clamp(0.0, BOUND) / values_per_frame


def last_layer_norm(input_BCTHW: Tensor, weight: torch.Size, gradient_BCTHW: Tensor) -> Tensor:
    """Norm of the gradient at the weight of a convolution (stride 1, zero padding of half the kernel), float32.

    It follows from the convolution's input and the gradient at its output, so neither the autoencoder's graph nor its
    weights, which ZeRO may have put elsewhere, are needed.

    Args:
        input_BCTHW: what the convolution was given.
        weight: shape of its weight.
        gradient_BCTHW: gradient of a loss with respect to its output.
    """
    if input_BCTHW.device.type == "cpu":
        input_BCTHW = input_BCTHW.float()
    padding = [side // 2 for side in weight[2:]]
    outer = gradient_BCTHW.to(input_BCTHW.dtype)
    gradient: Tensor = conv3d_weight(input_BCTHW, weight, outer, padding=padding)  # type: ignore[no-untyped-call]
    norm: Tensor = gradient.float().norm()
    return norm
