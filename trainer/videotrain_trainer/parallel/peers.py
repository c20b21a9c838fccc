"""The few collectives besides those of the engine: small, and on the CPU. All of them, but for the drain's flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor

from videotrain_trainer.errors import TrainerError
from videotrain_trainer.parallel.messages import check_length, decode, encode

Value = TypeVar("Value")
_DONE: Final = TypeAdapter(bool)
_NAME: Final = TypeAdapter(str)


class WorldPeers:
    """The ranks of the world; every method is collective. Values are sent as JSON of the type that `kind` describes."""

    @property
    def rank(self) -> int:
        """Rank of this process in the world."""
        return dist.get_rank()

    def from_first(self, kind: TypeAdapter[Value], value: Value | None) -> Value:
        """The value that rank 0 has; that of other ranks is left out.

        Raises:
            TrainerError: rank 0 sent something else.
        """
        message = encode(kind, value) if self.rank == 0 else None
        length = torch.tensor(0 if message is None else message.numel())
        dist.broadcast(length, src=0)
        check_length(int(length), 0)
        received = torch.empty(int(length), dtype=torch.uint8) if message is None else message
        dist.broadcast(received, src=0)
        return decode(kind, received, 0)

    def wait_for_first(self) -> None:
        """Return once rank 0 has come here."""
        self.from_first(_DONE, True)

    def to_first(self, kind: TypeAdapter[Value], value: Value) -> list[Value]:
        """On rank 0 the values of all ranks; empty elsewhere. Nothing of it grows with the world on another rank.

        Raises:
            TrainerError: a rank sent something else (on rank 0), or more than rank 0 can hold (on all ranks).
        """
        ranks, message = dist.get_world_size(), encode(kind, value)
        lengths = self._gathered(torch.tensor([message.numel()]))
        told = torch.tensor(max((int(length), rank) for rank, length in enumerate(lengths)) if lengths else (0, 0))
        dist.broadcast(told, src=0)
        longest, rank = (int(number) for number in told)
        check_length(longest, rank, ranks)
        if longest < message.numel():
            raise TrainerError(f"rank 0 leaves {longest} bytes for the message of rank {self.rank}: {message.numel()}")
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: message.numel()] = message
        values = []
        for sender, (row, length) in enumerate(zip(self._gathered(padded), lengths, strict=True)):
            check_length(int(length), sender, ranks)
            values.append(decode(kind, row[: int(length)], sender))
        return values

    def table(self, row: Sequence[float]) -> Tensor:
        """(ranks, len(row)) float64: the rows of all ranks."""
        out = torch.empty(dist.get_world_size() * len(row), dtype=torch.float64)
        dist.all_gather_single(out, torch.tensor(row, dtype=torch.float64))
        return out.view(-1, len(row))

    def sum(self, vector: Tensor) -> Tensor:
        """The sum of the ranks' vectors, which have one length."""
        total = vector.clone()
        dist.all_reduce(total)
        return total

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether some rank has set it."""
        return [bool(flag) for flag in self.table([float(flag) for flag in flags]).any(dim=0)]

    def swap(self, messages: Sequence[Tensor]) -> list[Tensor]:
        """One vector to each rank, and one from each, by rank; all of one data type, on the CPU.

        Raises:
            TrainerError: a rank announces more than a rank can have to say.
        """
        lengths = torch.tensor([message.numel() for message in messages])
        coming = torch.empty_like(lengths)
        dist.all_to_all_single(coming, lengths)
        for sender, length in enumerate(coming.tolist()):
            if length:
                check_length(length * messages[0].element_size(), sender)
        received = torch.empty(int(coming.sum()), dtype=messages[0].dtype)
        dist.all_to_all_single(received, torch.cat(list(messages)), coming.tolist(), lengths.tolist())
        return list(received.tensor_split(coming.cumsum(0)[:-1]))

    def _gathered(self, row: Tensor) -> list[Tensor]:
        """On rank 0 the rows of all ranks, which have one length; empty elsewhere."""
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size())] if self.rank == 0 else None
        dist.gather(row, rows, dst=0)
        return rows or []


def first_choice(choice: str) -> str:
    """Rank 0's choice of a name, on all ranks. Collective."""
    return WorldPeers().from_first(_NAME, choice)
