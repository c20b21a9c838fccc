"""What the models share: attention dispatch, rotary positions, norms, tokens <-> latents, seeded generators.

Shape letters: B batch, C channels, T latent frames, H rows, W columns (latent pixels), N image tokens, L text tokens,
S tokens of a whole sequence, A attention heads, K head dimension, D width of a token.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
ROPE_THETA = 10_000.0
"""Base of the rotary frequencies of every published model."""


def attention(q_BASK: Tensor, k_BASK: Tensor, v_BASK: Tensor) -> Tensor:
    """Full bidirectional attention without a mask, scaled by 1/sqrt(K).

    FlashAttention runs it on CUDA in half precision if it is installed; torch's SDPA chooses a kernel otherwise.

    Returns:
        The same shape as `q_BASK`.
    """
    if q_BASK.is_cuda and q_BASK.dtype in (torch.bfloat16, torch.float16) and _flash_attention_installed():
        return _flash_attention(q_BASK, k_BASK, v_BASK)
    return F.scaled_dot_product_attention(q_BASK, k_BASK, v_BASK)


@cache
def _flash_attention_installed() -> bool:
    found = importlib.util.find_spec("flash_attn") is not None
    LOG.info("attention on CUDA: %s", "flash_attn" if found else "torch scaled_dot_product_attention")
    return found


def _flash_attention(q_BASK: Tensor, k_BASK: Tensor, v_BASK: Tensor) -> Tensor:
    from flash_attn import flash_attn_func  # type: ignore[import-not-found,unused-ignore]

    result: Tensor = flash_attn_func(*(x_BASK.transpose(1, 2) for x_BASK in (q_BASK, k_BASK, v_BASK)))
    return result.transpose(1, 2)


def split_heads(x_BSD: Tensor, num_heads: int) -> Tensor:
    """(B, S, A*K) to (B, A, S, K)."""
    batch, length, width = x_BSD.shape
    return x_BSD.reshape(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x_BASK: Tensor) -> Tensor:
    """(B, A, S, K) to (B, S, A*K)."""
    return x_BASK.transpose(1, 2).flatten(2)


def rope_tables(ids_BS3: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, float32, (B, 1, S, K/2) each.

    Angles come axis after axis (time, rows, columns); angle j of an axis of width d is position * theta^(-2j/d).

    Args:
        ids_BS3: positions of each token on each axis.
        axes: head dimensions of each axis; their sum is K.
    """
    angles = [ids_BS3[..., i, None].float() * _frequencies(width, ids_BS3.device) for i, width in enumerate(axes)]
    angles_B1SK = torch.cat(angles, dim=-1)[:, None]
    return angles_B1SK.cos(), angles_B1SK.sin()


def _frequencies(width: int, device: torch.device) -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    return 1.0 / ROPE_THETA**exponents


def apply_rope(x_BASK: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate element j of each head against element j + K/2 (the half-split layout of the released weights)."""
    cos, sin = tables
    first, second = x_BASK.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BASK.dtype)


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


def pack(latent_BCTHW: Tensor, patch: int) -> Tensor:
    """Latents to tokens: frame, row, column; within a token (channel, patch row, patch column).

    Returns:
        (B, T * H/patch * W/patch, C * patch * patch).
    """
    batch, channels, frames, rows, columns = latent_BCTHW.shape
    if rows % patch or columns % patch:
        raise ValueError(f"a latent of {rows} x {columns} cannot be cut into patches of {patch} x {patch}")
    grid = latent_BCTHW.reshape(batch, channels, frames, rows // patch, patch, columns // patch, patch)
    return grid.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * patch * patch)


def unpack(tokens_BND: Tensor, frames: int, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `pack`; `rows` and `columns` are those of the latent.

    Returns:
        (B, C, frames, rows, columns).
    """
    batch, height, width = tokens_BND.shape[0], rows // patch, columns // patch
    grid = tokens_BND.reshape(batch, frames, height, width, -1, patch, patch)
    return grid.permute(0, 4, 1, 2, 5, 3, 6).reshape(batch, -1, frames, rows, columns)


def position_ids(frames: int, rows: int, columns: int, patch: int, batch: int) -> Tensor:
    """(B, N, 3) float32 positions (frame, row, column) in units of patches, from 0, for a latent of that size."""
    axes = [torch.arange(n, dtype=torch.float32) for n in (frames, rows // patch, columns // patch)]
    ids_N3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return ids_N3.expand(batch, -1, -1)


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on seed and name alone, not on the global state or on what was drawn before."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
