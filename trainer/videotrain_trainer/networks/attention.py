"""Attention of every model, and heads.

Shape letters: B batch, S tokens of a whole sequence, A attention heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (B, A, S, K) to (B, A, S, K), as `attention` computes it."""


_package: Callable[..., Tensor] | None = None
_PACKAGE_HEAD_DIM = 256
"""Largest head dimension that FlashAttention 2 has."""


def set_package(flash_attn_func: Callable[..., Tensor] | None) -> None:
    """Let FlashAttention 2 run attention in half precision from now on; None for torch's SDPA.

    Set-up calls it, see `attention_kernels`: asking for what is installed within a step would break compiled graphs.
    """
    global _package
    _package = flash_attn_func


def attention(q_BASK: Tensor, k_BASK: Tensor, v_BASK: Tensor) -> Tensor:
    """Full bidirectional attention without a mask, scaled by 1/sqrt(K), on the kernel of the process.

    Returns:
        The same shape as `q_BASK`.
    """
    half = q_BASK.dtype in (torch.bfloat16, torch.float16) and q_BASK.shape[-1] <= _PACKAGE_HEAD_DIM
    if _package is not None and half:
        return _package(*(x_BASK.transpose(1, 2) for x_BASK in (q_BASK, k_BASK, v_BASK))).transpose(1, 2)
    return F.scaled_dot_product_attention(q_BASK, k_BASK, v_BASK)


def split_heads(x_BSD: Tensor, num_heads: int) -> Tensor:
    """(B, S, A*K) to (B, A, S, K)."""
    batch, length, width = x_BSD.shape
    return x_BSD.reshape(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x_BASK: Tensor) -> Tensor:
    """(B, A, S, K) to (B, S, A*K)."""
    return x_BASK.transpose(1, 2).flatten(2)
