"""Rotary positions.

Shape letters: B batch, S tokens of a whole sequence, A attention heads, K head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_THETA = 10_000.0
"""Base of the rotary frequencies of every published model."""


def rope_tables(
    ids_BS3: Tensor, axes: tuple[int, ...], theta: float = ROPE_THETA, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, float32, (B, 1, S, K/2) each.

    Angles come axis after axis (time, rows, columns); angle j of an axis of width d is position * theta^(-2j/d).

    Args:
        ids_BS3: positions of each token on each axis.
        axes: head dimensions of each axis; their sum is K.
        theta: base of the frequencies.
        exact: angles in float64, as the published interleaved models compute them.
    """
    dtype = torch.float64 if exact else torch.float32
    angles = [
        ids_BS3[..., i, None].to(dtype) * _frequencies(width, theta, ids_BS3, dtype) for i, width in enumerate(axes)
    ]
    angles_B1SK = torch.cat(angles, dim=-1)[:, None]
    return angles_B1SK.cos().float(), angles_B1SK.sin().float()


def _frequencies(width: int, theta: float, like: Tensor, dtype: torch.dtype) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=dtype, device=like.device) / width
    return 1.0 / theta**exponents


def apply_rope(x_BASK: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate element j of each head against element j + K/2 (the half-split layout of the released weights)."""
    cos, sin = tables
    first, second = x_BASK.float().chunk(2, dim=-1)
    return torch.cat(_rotate(first, second, cos, sin), dim=-1).to(x_BASK.dtype)


def apply_rope_interleaved(x_BASK: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate element 2j of each head against element 2j + 1 (the layout of FLUX.1's own weights)."""
    cos, sin = tables
    x = x_BASK.float()
    return torch.stack(_rotate(x[..., 0::2], x[..., 1::2], cos, sin), dim=-1).flatten(-2).to(x_BASK.dtype)


def _rotate(a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair (a, b) turned by its angle."""
    return torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
