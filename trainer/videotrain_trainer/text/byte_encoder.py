"""A small seeded text encoder over UTF-8 bytes, for tests and demos without downloaded weights.

Bytes are tokenised as ByT5 does (0 pad, 1 end, byte b is b + 3) and pass through a two-block transformer whose weights
derive from a fixed seed, so that every process and machine makes the same features. It knows nothing about language:
it gives each caption clear features of its own, which is enough for a model to learn from.

Shape letters: B batch, L tokens, D width, A heads, K head dimension, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_trainer.networks.attention import merge_heads, split_heads
from videotrain_trainer.networks.common import seeded_generator

END, FIRST_BYTE, VOCABULARY = 1, 3, 259
SEED = 20_250_313
"""Changing it changes every stored feature."""
WIDTH, HEADS, BLOCKS = 128, 4, 2
PANGRAM = "The quick brown fox jumps over the lazy dog, and a man walks along the street."


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Features of a batch of captions, float32."""

    context_BLD: Tensor
    """Token features; rows beyond a caption's length are zero."""
    pooled_BP: Tensor
    """One vector per caption."""
    lengths: list[int]
    """Tokens of each caption, the end token included."""


def tokenize(text: str, max_tokens: int) -> list[int]:
    """Byte tokens with the end token, cut to `max_tokens`; the empty string is the end token alone."""
    return [byte + FIRST_BYTE for byte in text.encode()[: max_tokens - 1]] + [END]


class _Block(nn.Module):
    """Pre-norm attention within a caption and a feed-forward layer, weights fixed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.qkv = _fixed(f"{name}.qkv", (3 * WIDTH, WIDTH))
        self.out = _fixed(f"{name}.out", (WIDTH, WIDTH))
        self.up = _fixed(f"{name}.up", (2 * WIDTH, WIDTH))
        self.down = _fixed(f"{name}.down", (WIDTH, 2 * WIDTH))

    def forward(self, x_BLD: Tensor) -> Tensor:
        qkv = F.linear(_normed(x_BLD), self.qkv).chunk(3, dim=-1)
        q, k, v = (split_heads(part, HEADS) for part in qkv)
        x_BLD = x_BLD + F.linear(merge_heads(F.scaled_dot_product_attention(q, k, v)), self.out)
        return x_BLD + F.linear(F.gelu(F.linear(_normed(x_BLD), self.up)), self.down)


class ByteTextEncoder(nn.Module):
    """Captions to token features and a pooled feature. Nothing in it is trained.

    Args:
        context_dim: width of the token features.
        pooled_dim: width of the pooled feature.
        max_tokens: every caption is padded or cut to so many tokens.
    """

    def __init__(self, context_dim: int, pooled_dim: int, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.embedding = _fixed("embedding", (VOCABULARY, WIDTH), scale=WIDTH**0.5)
        self.pairs = _fixed("pairs", (WIDTH, 3 * WIDTH))
        self.blocks = nn.ModuleList(_Block(f"blocks.{index}") for index in range(BLOCKS))
        self.to_context = _fixed("to_context", (context_dim, WIDTH))
        self.to_pooled = _fixed("to_pooled", (pooled_dim, 2 * WIDTH))
        with torch.no_grad():
            common = _summary(self._tokens(tokenize(PANGRAM, len(PANGRAM) + 1)))
        self.common: Tensor
        self.register_buffer("common", common, persistent=False)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of captions; the empty string is the null caption. Each caption is coded by itself."""
        rows = [self._encode_one(tokenize(text, self.max_tokens)) for text in texts]
        padded = [F.pad(context, (0, 0, 0, self.max_tokens - len(context))) for context, _ in rows]
        return TextFeatures(
            context_BLD=torch.stack(padded),
            pooled_BP=torch.stack([pooled for _, pooled in rows]),
            lengths=[len(context) for context, _ in rows],
        )

    def count(self, text: str) -> int:
        """Tokens of a caption, padding not counted."""
        return len(tokenize(text, self.max_tokens))

    def _encode_one(self, tokens: list[int]) -> tuple[Tensor, Tensor]:
        x_LD = self._tokens(tokens)
        # All texts share the statistics of letters; without them pooled features point in clearly different directions.
        return F.linear(x_LD, self.to_context), F.linear(_normed(_summary(x_LD) - self.common), self.to_pooled)

    def _tokens(self, tokens: list[int]) -> Tensor:
        x_LD = self.embedding[torch.tensor(tokens, device=self.embedding.device)]
        neighbours = torch.cat((F.pad(x_LD, (0, 0, 1, 0))[:-1], x_LD, F.pad(x_LD, (0, 0, 0, 1))[1:]), dim=-1)
        x_BLD = (x_LD + _positions(len(tokens)).to(x_LD) + F.relu(F.linear(neighbours, self.pairs)))[None]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return _normed(x_BLD)[0]


def _summary(x_LD: Tensor) -> Tensor:
    return torch.cat((x_LD.mean(dim=0), x_LD.amax(dim=0) + x_LD.amin(dim=0)))


def _fixed(name: str, shape: tuple[int, int], scale: float = 1.0) -> nn.Parameter:
    values = torch.randn(shape, generator=seeded_generator(SEED, name)) * (scale / shape[1] ** 0.5)
    return nn.Parameter(values, requires_grad=False)


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _positions(length: int) -> Tensor:
    steps = torch.arange(length, dtype=torch.float32)[:, None]
    angles = steps / 10_000.0 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
