"""The 3-D PatchGAN discriminator of the Video DC-AE's adversarial phase (arXiv 2503.09642, section 4).

Kernels of 3, all sides halved twice, then only rows and columns: 32 frames of 256 x 256 pixels give 8 x 8 x 8 logits.
Its random numbers (dropout) come from a generator that the caller seeds, and its norms use the batch at hand and keep
no running averages, so a step depends on weights, pixels and seed alone.

Shape letters: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_trainer.networks.common import seeded_generator

SLOPE = 0.2
"""Of the leaky ReLU below zero."""
MOST_WIDENING = 8
INIT_STD = 0.02
HALVED_IN_TIME = 2
"""First layers that also halve the time."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator."""

    filters: int = 64
    """Channels of the first layer; they double up to eightfold."""
    layers: int = 5
    """Layers that halve rows and columns."""
    dropout: float = 0.3
    pixel_channels: int = 3


class _Conv(nn.Conv3d):
    """A 3-D convolution of kernel 3 whose bfloat16 on the CPU is computed in float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(B, in, T, H, W) to (B, out, T', H', W')."""
        if input.device.type == "cpu" and input.dtype == torch.bfloat16:
            # oneDNN's bfloat16 conv3d gives wrong gradients now and then (torch 2.13).
            bias = None if self.bias is None else self.bias.float()
            exact: Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
            return exact.to(input.dtype)
        return super().forward(input)


class Discriminator(nn.Module):
    """Logits of patches: high for pixels of real clips, low for reconstructions."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.filters * min(2**layer, MOST_WIDENING) for layer in range(config.layers + 1)]
        layers: list[nn.Module] = [_Conv(config.pixel_channels, widths[0], 3, 2, 1), nn.LeakyReLU(SLOPE)]
        for layer in range(1, config.layers + 1):
            stride = _stride(layer, config.layers)
            layers += [
                _Conv(widths[layer - 1], widths[layer], 3, stride, 1, bias=False),
                nn.BatchNorm3d(widths[layer], track_running_stats=False),
                nn.LeakyReLU(SLOPE),
            ]
        layers.append(_Conv(widths[-1], 1, 3, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, *clips_BCTHW: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Score clips, each for itself: their pixels do not meet in a norm.

        Args:
            clips_BCTHW: (B, 3, T, H, W) in [-1, 1] each.
            generator: of the dropout's random numbers; on the device of the clips.

        Returns:
            (B, 1, T', H', W') logits of each.
        """
        return tuple(self._score(clip_BCTHW, generator) for clip_BCTHW in clips_BCTHW)

    def _score(self, x_BCTHW: Tensor, generator: torch.Generator) -> Tensor:
        normed = False
        for layer in self.main:
            x_BCTHW = layer(x_BCTHW)
            if isinstance(layer, nn.LeakyReLU) and normed:
                x_BCTHW = _drop(x_BCTHW, self.config.dropout, generator)
            normed = isinstance(layer, nn.BatchNorm3d)
        return x_BCTHW

    def initialize(self, seed: int) -> None:
        """Random weights that depend on the seed and each parameter's name alone: N(0, 0.02), norms N(1, 0.02)."""
        for name, parameter in self.named_parameters():
            owner, _, kind = name.rpartition(".")
            _fill(parameter, self.get_submodule(owner), kind, seeded_generator(seed, f"discriminator.{name}"))


def _stride(layer: int, layers: int) -> tuple[int, int, int]:
    if layer == layers:
        return (1, 1, 1)
    return (2, 2, 2) if layer < HALVED_IN_TIME else (1, 2, 2)


def _drop(x_BCTHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    if share == 0:
        return x_BCTHW
    kept = torch.rand(x_BCTHW.shape, generator=generator, device=x_BCTHW.device) >= share
    return x_BCTHW * kept.to(x_BCTHW.dtype) / (1 - share)


@torch.no_grad()
def _fill(parameter: nn.Parameter, owner: nn.Module, kind: str, generator: torch.Generator) -> None:
    values = torch.empty(parameter.shape, dtype=torch.float32)
    if kind == "weight":
        values.normal_(1.0 if isinstance(owner, nn.BatchNorm3d) else 0.0, INIT_STD, generator=generator)
    elif isinstance(owner, nn.Conv3d):
        bound = 1.0 / math.sqrt(owner.weight[0].numel())
        values.uniform_(-bound, bound, generator=generator)
    else:
        values.zero_()
    parameter.copy_(values)


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, scalar float32.

    Args:
        kind: `hinge`: mean(relu(1 - real)) and mean(relu(1 + fake)); `vanilla`: their logistic cross-entropies.
        real: logits of clips.
        fake: logits of reconstructions.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """What the autoencoder minimises, scalar float32: -mean(fake) for `hinge`, mean(softplus(-fake)) for `vanilla`."""
    fake = fake.float()
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()
