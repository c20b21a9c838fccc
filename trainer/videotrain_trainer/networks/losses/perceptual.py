"""LPIPS: how different two pictures look, measured in the features of VGG16 (arXiv 1801.03924, version 0.1).

Tensor names are those of the published files: torchvision's `features.*` for VGG16 and `lin*.model.1.weight` for the
weights of the features. Everything is computed in float32: the distance is a small difference of normalised features,
of which bfloat16 keeps two digits.

Shape letters: N pictures, B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of each VGG16 block; the features of a block are taken before its pooling."""
VGG16_WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for pixels in [-1, 1], as LPIPS rounds them."""
TINY = 1e-20
"""Below the square root of a feature's length: a length of zero has no gradient."""
LENGTH_EPS = 1e-10
_PACKAGED = re.compile(r"net\.slice\d\.(\d+\.(?:weight|bias))")
_LISTED_LINEAR = re.compile(r"lins\.(\d)\.(model\.1\.weight)")


class _Linear(nn.Module):
    """Weights of a block's channels, under their published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 1, H, W)."""
        out: Tensor = self.model(x_NCHW)
        return out


class PerceptualDistance(nn.Module):
    """LPIPS with VGG16. Its weights are never trained.

    Args:
        widths: channels of the five blocks; others than VGG16's make a smaller network of the same structure.
    """

    def __init__(self, widths: tuple[int, ...] = VGG16_WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._taps: list[int] = []
        before = 3
        for block, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True)):
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self._taps.append(len(layers) - 1)
            if block + 1 < len(DEPTHS):
                layers.append(nn.MaxPool2d(2))
            setattr(self, f"lin{block}", _Linear(width))
        self.features = nn.Sequential(*layers)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, first_NCHW: Tensor, second_NCHW: Tensor) -> Tensor:
        """Distances of pairs of pictures.

        Args:
            first_NCHW: (N, 3, H, W) in [-1, 1]; sides of 16 pixels or more.
            second_NCHW: the same shape.

        Returns:
            (N,) float32; 0 for equal pictures.
        """
        first, second = self._features(first_NCHW), self._features(second_NCHW)
        total = first_NCHW.new_zeros(len(first_NCHW), dtype=torch.float32)
        for block, (a_NCHW, b_NCHW) in enumerate(zip(first, second, strict=True)):
            weigh = cast("_Linear", getattr(self, f"lin{block}"))
            total = total + weigh((a_NCHW - b_NCHW).square()).mean(dim=(1, 2, 3))
        return total

    def _features(self, x_NCHW: Tensor) -> list[Tensor]:
        """Features of the five blocks, each position scaled to length one."""
        x_NCHW = (x_NCHW.float() - cast("Tensor", self.shift)) / cast("Tensor", self.scale)
        found = []
        for number, layer in enumerate(self.features):
            x_NCHW = layer(x_NCHW)
            if number in self._taps:
                length = (x_NCHW.square().sum(dim=1, keepdim=True) + TINY).sqrt()
                found.append(x_NCHW / (length + LENGTH_EPS))
        return found


def frames_of(video_BCTHW: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B * T, C, H, W)."""
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of this network in a published file, under their names here; VGG16's classifier is left out.

    Files come from torchvision (`features.0.weight`), from LPIPS (`lin0.model.1.weight`), or hold both as the package
    of LPIPS stores itself (`net.slice1.0.weight`, `lins.0.model.1.weight`).
    """
    out = {}
    for name, tensor in state.items():
        if match := _PACKAGED.fullmatch(name):
            out[f"features.{match[1]}"] = tensor
        elif match := _LISTED_LINEAR.fullmatch(name):
            out[f"lin{match[1]}.{match[2]}"] = tensor
        elif name.startswith("features.") or re.fullmatch(r"lin\d\.model\.1\.weight", name):
            out[name] = tensor
    return out


def widths_in(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Channels of the blocks that the weights are for; VGG16's where a block's weights are missing."""
    names = [f"lin{block}.model.1.weight" for block in range(len(DEPTHS))]
    return tuple(
        state[name].shape[1] if name in state and state[name].ndim == 4 else width
        for name, width in zip(names, VGG16_WIDTHS, strict=True)
    )
