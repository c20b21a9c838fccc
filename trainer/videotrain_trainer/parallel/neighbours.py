"""The way from each rank to the rank of the next pod that has its number there, beside the collectives of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from videotrain_trainer.errors import TrainerError
from videotrain_trainer.parallel.messages import check_length

CHUNK: Final = 1 << 26
"""Bytes that are on their way at once, so that a long copy holds no more memory than that."""


class NextPod:
    """Sends to the next pod and takes from the one before. Made by all ranks at once; used by one thread.

    It has process groups of its own, so that what goes over them never meets a collective of training. Each holds the
    ranks of one number, which spares every rank connections to all others.

    Args:
        node_ranks: ranks of each pod.
    """

    def __init__(self, node_ranks: int) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        for number in range(node_ranks):
            group = dist.new_group(list(range(number, size, node_ranks)), backend="gloo")
            if number == rank % node_ranks:
                self._group = group
        self._next, self._before, self._rank = (rank + node_ranks) % size, (rank - node_ranks) % size, rank

    def pass_on(self, header: bytes, data: Tensor, into: Callable[[bytes], Tensor]) -> bytes:
        """Send a copy to the next pod while one comes from the pod before.

        Args:
            header: of the copy; empty if there is none this time.
            data: (bytes,) uint8.
            into: gives the place for the bytes of the copy with a header; not asked if none comes.

        Returns:
            The header that came.

        Raises:
            TrainerError: what came did not fit its place; it was taken in all the same, so that both ends stay in step.
            Exception: of `into`, likewise; or of a connection that broke.
        """
        coming = torch.empty(2, dtype=torch.int64)
        self._swap(torch.tensor([len(header), data.numel()]), coming)
        header_bytes, data_bytes = (int(length) for length in coming)
        if header_bytes:
            check_length(header_bytes, self._before)
        sealed = torch.empty(header_bytes, dtype=torch.uint8)
        self._swap(torch.frombuffer(bytearray(header or b" "), dtype=torch.uint8)[: len(header)], sealed)
        found, place, problem = sealed.numpy().tobytes(), torch.empty(0, dtype=torch.uint8), None
        try:
            place = into(found) if found else place
            if place.numel() != data_bytes:
                raise TrainerError(f"rank {self._before} sends {data_bytes} bytes for a copy of {place.numel()}")  # noqa: TRY301
        except Exception as error:
            problem = error
        self._swap(data, place if problem is None else None, data_bytes)
        if problem is not None:
            raise problem
        return found

    def _swap(self, out: Tensor, into: Tensor | None, length: int | None = None) -> None:
        """Send one tensor and fill another, piece by piece; without a place what comes is dropped."""
        coming = (0 if into is None else into.numel()) if length is None else length
        item = out.element_size()
        step = CHUNK // item
        sink = torch.empty(min(step, coming), dtype=out.dtype) if into is None else into
        for start in range(0, max(out.numel(), coming), step):
            pending = []
            if start < out.numel():
                pending.append(dist.isend(out[start : start + step], self._next, group=self._group))
            if start < coming:
                place = sink[: min(step, coming - start)] if into is None else into[start : start + step]
                pending.append(dist.irecv(place, self._before, group=self._group))
            for work in pending:
                if work is not None:
                    work.wait()
