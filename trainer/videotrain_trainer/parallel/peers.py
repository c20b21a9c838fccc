"""The few collectives besides those of the engine: small, and on the CPU. All of them, but for the drain's flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


class WorldPeers:
    """The ranks of the world; every method is collective."""

    @property
    def rank(self) -> int:
        """Rank of this process in the world."""
        return dist.get_rank()

    def from_first(self, value: Value | None) -> Value:
        """The value that rank 0 has."""
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        found: Value = box[0]
        return found

    def to_all(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank."""
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values

    def to_first(self, value: Value) -> list[Value]:
        """On rank 0 the values of all ranks; empty elsewhere."""
        box: list[Any] | None = [None] * dist.get_world_size() if self.rank == 0 else None
        dist.gather_object(value, box, dst=0)
        return box or []

    def table(self, row: Sequence[float]) -> Tensor:
        """(ranks, len(row)) float64: the rows of all ranks."""
        out = torch.empty(dist.get_world_size() * len(row), dtype=torch.float64)
        dist.all_gather_single(out, torch.tensor(row, dtype=torch.float64))
        return out.view(-1, len(row))
