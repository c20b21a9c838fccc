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
