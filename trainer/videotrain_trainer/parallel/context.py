"""Context parallelism: the ranks of a group share every sequence, each with an equal part of its tokens.

Outside attention each token is worked on by itself, so a rank has its own text and image tokens, with their positions.
Within attention the ranks of a node exchange tokens for heads, so that each has all tokens of some heads (Ulysses,
arXiv 2309.14509): queries, keys and values in one exchange, the result in another. Where a group is larger than a node,
or does not divide the heads, its parts hold blocks of the sequence that see one another's keys and values in turn; see
`ring_attention`.

Attention does not depend on the order of tokens, and every token has its position with it, so the exchanged sequence
stays in the order of the ranks. Parts differ by at most one token and none is padded: the exchange knows their lengths.

Shape letters: B batch, N tokens of a stream, S tokens of a sequence, A attention heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single

from videotrain_api.resource.stages import ulysses_degree
from videotrain_trainer.networks.attention import Attention
from videotrain_trainer.parallel.ring_attention import ring_attention


def part_lengths(tokens: int, parts: int) -> list[int]:
    """Tokens of every part, as even as they can be: the first ones have one more."""
    return [tokens // parts + (part < tokens % parts) for part in range(parts)]


@dataclass(frozen=True)
class SplitAttention:
    """Attention of a rank's tokens to those of the whole sequence; stands in for that of the model.

    A plain value, so that a compiled block is guarded by its contents and not by its identity.
    """

    attend: Attention
    """Of one rank, for what is exchanged."""
    lengths: tuple[int, ...]
    """Tokens of every rank of the group: text and image."""
    place: int
    """Of this rank in the group."""
    head_ranks: int
    """Ranks that split heads: neighbours, of one node."""
    head_group: str
    """Name of their process group."""
    ring_group: str
    """Name of the process group of those that hold other blocks of the sequence for the same heads."""

    def __call__(self, q_BASK: Tensor, k_BASK: Tensor, v_BASK: Tensor) -> Tensor:
        """Same shapes as `attention`, with this rank's tokens."""
        starts = range(0, len(self.lengths), self.head_ranks)
        blocks = [self.lengths[start : start + self.head_ranks] for start in starts]
        block, column = self.place // self.head_ranks, self.place % self.head_ranks
        q, k, v = q_BASK, k_BASK, v_BASK
        if self.head_ranks > 1:
            q, k, v = tokens_for_heads((q, k, v), blocks[block], self.head_group)
        if len(blocks) > 1:
            out = ring_attention(q, k, v, [sum(lengths) for lengths in blocks], block, self.ring_group)
        else:
            out = self.attend(q, k, v)
        return heads_for_tokens(out, blocks[block], column, self.head_group) if self.head_ranks > 1 else out


def tokens_for_heads(parts_BASK: Sequence[Tensor], lengths: Sequence[int], group: str) -> tuple[Tensor, ...]:
    """Exchange this rank's tokens of all heads for all tokens of its heads, of all tensors at once.

    Args:
        parts_BASK: of one shape.
        lengths: tokens of every rank of the group.
        group: name of the process group; the heads divide evenly.

    Returns:
        (B, A / ranks, sum(lengths), K) each.
    """
    ranks, (batch, heads, mine, width) = len(lengths), parts_BASK[0].shape
    # (ranks, tensors, B, A / ranks, S, K), contiguous: the one copy before the exchange.
    split = (batch, ranks, heads // ranks, mine, width)
    sent = torch.stack([part.reshape(split).transpose(0, 1) for part in parts_BASK], dim=1)
    token = len(parts_BASK) * batch * (heads // ranks) * width
    received = all_to_all_single(sent.flatten(), [token * n for n in lengths], [token * mine] * ranks, group)
    pieces = torch.split(received, [token * n for n in lengths])
    shape = (len(parts_BASK), batch, heads // ranks)
    joined = torch.cat([piece.view(*shape, n, width) for piece, n in zip(pieces, lengths, strict=True)], dim=3)
    return joined.unbind(0)


def heads_for_tokens(x_BASK: Tensor, lengths: Sequence[int], column: int, group: str) -> Tensor:
    """The exchange back: all tokens of some heads for this rank's tokens of all heads.

    Args:
        x_BASK: (B, A / ranks, sum(lengths), K).
        lengths: tokens of every rank of the group.
        column: place of this rank in the group.
        group: name of the process group.
    """
    ranks, (batch, heads, _, width) = len(lengths), x_BASK.shape
    token, mine = batch * heads * width, lengths[column]
    sent = torch.cat([piece.flatten() for piece in torch.split(x_BASK, list(lengths), dim=2)])
    received = all_to_all_single(sent, [token * mine] * ranks, [token * n for n in lengths], group)
    return received.view(ranks, batch, heads, mine, width).transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True)
class ContextGroup:
    """The ranks that share this rank's sequences at one degree."""

    degree: int
    place: int
    """Of this rank among them."""
    head_ranks: int
    head_group: str
    ring_group: str
    everyone: dist.ProcessGroup

    def part(self, x_BN: Tensor) -> Tensor:
        """This rank's tokens of a tensor whose second dimension is tokens."""
        return torch.split(x_BN, part_lengths(x_BN.shape[1], self.degree), dim=1)[self.place]

    def attention(self, attend: Attention, text_tokens: int, image_tokens: int) -> SplitAttention:
        """Attention to the whole of a sequence.

        Args:
            attend: attention of one rank.
            text_tokens: of all ranks together.
            image_tokens: of all ranks together.
        """
        streams = zip(part_lengths(text_tokens, self.degree), part_lengths(image_tokens, self.degree), strict=True)
        return SplitAttention(
            attend=attend,
            lengths=tuple(text + image for text, image in streams),
            place=self.place,
            head_ranks=self.head_ranks,
            head_group=self.head_group,
            ring_group=self.ring_group,
        )

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the group, the same on all of its ranks. Collective."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.everyone)
        return total


class ContextGroups:
    """This rank's groups of every degree in use, made once; all ranks switch from one to another with the bucket.

    Collective among all ranks.

    Args:
        rank: in the world.
        degrees: of all buckets; each divides the world.
        gpus_per_node: neighbours that are in one machine.
        heads: of the model.
    """

    def __init__(self, rank: int, degrees: Iterable[int], gpus_per_node: int, heads: int) -> None:
        self._groups = {
            degree: _make(rank, degree, ulysses_degree(degree, gpus_per_node, heads))
            for degree in sorted(set(degrees))
            if degree > 1
        }

    def of(self, degree: int) -> ContextGroup | None:
        """The group of a degree; None where a rank has whole sequences."""
        return self._groups.get(degree)


def members(rank: int, degree: int, head_ranks: int) -> tuple[range, range, range]:
    """Ranks that share sequences with `rank`; of them those that split heads with it; those with blocks of its heads.

    Args:
        rank: in the world.
        degree: ranks of a group, which are neighbours.
        head_ranks: neighbours within it that split heads.
    """
    first, column = rank - rank % degree, rank % head_ranks
    heads = range(rank - column, rank - column + head_ranks)
    return range(first, first + degree), heads, range(first + column, first + degree, head_ranks)


def _make(rank: int, degree: int, head_ranks: int) -> ContextGroup:
    everyone, heads, blocks = members(rank, degree, head_ranks)
    whole = _new_group(everyone)
    # Otherwise one of the two is everyone, and the other this rank alone, which exchanges nothing.
    apart = 1 < head_ranks < degree
    return ContextGroup(
        degree=degree,
        place=rank % degree,
        head_ranks=head_ranks,
        head_group=(_new_group(heads) if apart else whole).group_name,
        ring_group=(_new_group(blocks) if apart else whole).group_name,
        everyone=whole,
    )


def _new_group(ranks: Sequence[int]) -> dist.ProcessGroup:
    # Made by its members alone: in a large world every rank would otherwise wait for the groups of all others.
    group = dist.new_group(list(ranks), use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)
    return group
