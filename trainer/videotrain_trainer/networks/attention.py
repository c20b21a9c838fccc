"""Attention of every model: the choice of the kernel, and heads.

Shape letters: B batch, S tokens of a whole sequence, A attention heads, K head dimension.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LOG = logging.getLogger(__name__)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (B, A, S, K) to (B, A, S, K), as `attention` computes it."""


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
