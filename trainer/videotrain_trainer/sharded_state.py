"""The training state that one rank holds: where engines and checkpoints meet without knowing each other.

A rank's share of a parameter set is a vector of float32 elements, packed without gaps. Pieces say which run of which
parameter lies where in it. Every quantity (master weights, both moments, moving average) is packed alike, so one list
of pieces describes them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import torch
from torch import Tensor

Quantity = Literal["master", "exp_avg", "exp_avg_sq", "ema"]
"""Weights in float32, first and second moment of AdamW, moving average of the weights."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of elements of one parameter in a packed vector."""

    parameter: str
    start: int
    """First element within the flattened parameter."""
    length: int
    offset: int
    """First element within the packed vector."""


class ShardedState(Protocol):
    """The part of the training state that one rank holds."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter of the model, the same on all ranks."""

    @property
    def device(self) -> torch.device:
        """The device on which this rank's shards live."""

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What is kept of every parameter."""

    @property
    def saved(self) -> Sequence[Piece]:
        """What this rank writes. Over all ranks, every element once."""

    @property
    def held(self) -> Sequence[Piece]:
        """What this rank must be given when a checkpoint is loaded."""

    def read(self, quantity: Quantity, out: Tensor) -> None:
        """Copy the `saved` elements into a float32 vector on the host."""

    def write(self, quantity: Quantity, values: Tensor, start: int = 0) -> None:
        """Take `held` elements, from `start` of the packed vector on, from a vector on the host."""


def pack(spans: Iterable[tuple[str, int, int]]) -> list[Piece]:
    """Pieces for (parameter, start, length) spans, laid one behind the other; empty ones are left out."""
    pieces, offset = [], 0
    for parameter, start, length in spans:
        if length > 0:
            pieces.append(Piece(parameter, start, length, offset))
            offset += length
    return pieces


def in_parts(pieces: Sequence[Piece], most: int) -> Iterator[tuple[int, list[Piece]]]:
    """The packed vector cut into parts of at most so many elements.

    Yields:
        First element of the part, and its pieces, packed anew.
    """
    part: list[tuple[str, int, int]] = []
    begin = end = 0
    for piece in pieces:
        done = 0
        while done < piece.length:
            length = min(piece.length - done, most - (end - begin))
            part.append((piece.parameter, piece.start + done, length))
            done, end = done + length, end + length
            if end - begin == most:
                yield begin, pack(part)
                part, begin = [], end
    if part:
        yield begin, pack(part)


def packed_length(pieces: Sequence[Piece]) -> int:
    """Elements of the packed vector."""
    return sum(piece.length for piece in pieces)


def numel(shape: Sequence[int]) -> int:
    """Elements of a tensor of that shape; 1 for a scalar."""
    return prod(shape)
