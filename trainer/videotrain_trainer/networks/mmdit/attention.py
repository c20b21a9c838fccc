"""Attention of the MMDiT: projections and norms of one stream; the attention itself is joint over text and video.

Shape letters: B batch, S tokens of a stream, A heads, K head dimension, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from videotrain_trainer.networks.attention import split_heads
from videotrain_trainer.networks.common import RMSNorm
from videotrain_trainer.networks.mmdit.config import MMDiTConfig


class QKNorm(nn.Module):
    """Separate norms of queries and keys over the head dimension."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)


class SelfAttention(nn.Module):
    """Projections and query/key norm of one stream; the attention itself is joint over both."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.qkv_bias
        self.num_heads, self.fused = config.num_heads, config.fused_qkv
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=bias)
            self.k_proj = nn.Linear(width, width, bias=bias)
            self.v_proj = nn.Linear(width, width, bias=bias)
        self.norm = QKNorm(width // config.num_heads)
        self.proj = nn.Linear(width, width)

    def heads(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries and keys, and values, (B, A, S, K) each."""
        if self.fused:
            parts = self.qkv(x_BSD).chunk(3, dim=-1)
        else:
            parts = self.q_proj(x_BSD), self.k_proj(x_BSD), self.v_proj(x_BSD)
        q, k, v = (split_heads(part, self.num_heads) for part in parts)
        return self.norm.query_norm(q), self.norm.key_norm(k), v
