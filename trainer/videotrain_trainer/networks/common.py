"""What the models share beside attention, positions and packing: a norm, sinusoids, seeded generators, convolutions.

Shape letters: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension with a learned scale; statistics in float32, eps 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last dimension is the width."""
        x_float = x.float()
        inverse = torch.rsqrt(x_float.square().mean(dim=-1, keepdim=True) + 1e-6)
        return (x_float * inverse).to(x.dtype) * self.scale


def sinusoid(t_B: Tensor, width: int = 256) -> Tensor:
    """(B, width) float32: cosines, then sines, of 1000 * t at frequencies 10000^(-i / (width / 2))."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t_B.device)
    frequencies = torch.exp(-math.log(10_000.0) * steps / half)
    angles = (1000.0 * t_B.float())[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on seed and name alone, not on the global state or on what was drawn before."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def convolve(conv: nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    """A 3-D convolution through the right kernel: on the CPU torch's own choice is slow, and in bfloat16 wrong.

    Args:
        conv: weights, bias, stride, padding (zeros) and groups.
        x_BCTHW: input.
    """
    if x_BCTHW.device.type != "cpu":
        out: Tensor = conv(x_BCTHW)
        return out
    if x_BCTHW.dtype == torch.bfloat16:
        # oneDNN's bfloat16 conv3d gives wrong gradients now and then (torch 2.13: 1e35 where a repeat gives 0.02).
        bias = None if conv.bias is None else conv.bias.float()
        exact: Tensor = conv._conv_forward(x_BCTHW.float(), conv.weight.float(), bias)
        return exact.to(x_BCTHW.dtype)
    # Torch sends a small dense float32 batch of one to a kernel without oneDNN, forward and backward
    # (benchmarks/dc_ae_cpu.py). Inference calls oneDNN by name; training does the work twice, which takes a half to a
    # third of the time, since only a batch of two or more has oneDNN's gradients.
    dense = conv.groups == 1 and conv.kernel_size[0] > 1
    if not (dense and len(x_BCTHW) == 1 and x_BCTHW.dtype == torch.float32):
        plain: Tensor = conv(x_BCTHW)
        return plain
    if torch.is_grad_enabled() and (x_BCTHW.requires_grad or conv.weight.requires_grad):
        twice: Tensor = conv(x_BCTHW.expand(2, -1, -1, -1, -1))
        return twice[:1]
    arguments = (conv.padding, conv.stride, conv.dilation, conv.groups)
    named: Tensor = torch.ops.aten.mkldnn_convolution(x_BCTHW.contiguous(), conv.weight, conv.bias, *arguments)
    return named


def convolve_enlarged(conv: nn.Conv3d, x_BCTHW: Tensor, factor: tuple[int, int, int]) -> Tensor:
    """A convolution of the nearest-neighbour enlargement of its input.

    On the CPU, in float32 and with many positions for each channel, it is a transposed convolution of the input:
    neighbours in the enlargement are equal, so their taps are summed beforehand, and the enlargement is never made.
    That saves a fifth of a tiny DC-AE's training step (benchmarks/dc_ae_cpu.py); sums are rounded in another order.

    Args:
        conv: weights and bias of a kernel of 3, padding 1, stride 1, without groups.
        x_BCTHW: input.
        factor: by which time (1 or 2), rows (2) and columns (2) are enlarged.
    """
    folded = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype == torch.float32
    if not folded or x_BCTHW[0, 0].numel() < _POSITIONS_PER_CHANNEL * conv.in_channels:
        size = [float(n) for n in factor]
        return convolve(conv, F.interpolate(x_BCTHW, scale_factor=size, mode="nearest"))
    weight = conv.weight
    for axis, times in enumerate(factor, start=2):
        weight = _summed_taps(weight, axis) if times == 2 else weight.flip(axis)
    return F.conv_transpose3d(x_BCTHW, weight.transpose(0, 1), conv.bias, stride=factor, padding=1)


_POSITIONS_PER_CHANNEL = 16
"""From so many on; below, making the other weights takes longer than it saves."""


def _summed_taps(weight: Tensor, axis: int) -> Tensor:
    """Kernel of 4 of the transposed convolution with stride 2 along an axis whose kernel of 3 saw each value twice."""
    before, here, behind = weight.unbind(axis)
    return torch.stack((behind, here + behind, before + here, before), dim=axis)
