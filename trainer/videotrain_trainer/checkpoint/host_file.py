"""A safetensors file in host memory: written into place, checksummed by blocks, uploaded without a further copy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import google_crc32c
import torch
from torch import Tensor

from videotrain_trainer.checkpoint.fragments import ELEMENT_BYTES
from videotrain_trainer.checkpoint.state import BLOCK_BYTES, StoredFile
from videotrain_trainer.sharded_state import Piece, Quantity

ALIGNMENT = 64


class HostFile:
    """Header and vectors of one rank's file in one buffer, reused from checkpoint to checkpoint.

    Args:
        quantities: names of the vectors.
        length: elements of each vector.
        pinned: page-locked memory, for copies from a GPU.
        path: a file that is to hold the buffer, so that it outlives this process.

    Raises:
        OSError: the file system has no room for it.
    """

    def __init__(
        self, quantities: Sequence[Quantity], length: int, *, pinned: bool = False, path: Path | None = None
    ) -> None:
        header = _header(quantities, length)
        size = len(header) + len(quantities) * length * ELEMENT_BYTES
        if path is None:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        else:
            self._buffer = mapped_file(path, size)
        self._buffer[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        stride = length * ELEMENT_BYTES
        self.starts: dict[Quantity, int] = {name: len(header) + i * stride for i, name in enumerate(quantities)}
        self._length = length

    def vector(self, quantity: Quantity) -> Tensor:
        """The float32 vector to write into."""
        start = self.starts[quantity]
        return self._buffer[start : start + self._length * ELEMENT_BYTES].view(torch.float32)

    @property
    def bytes_tensor(self) -> Tensor:
        """(bytes,) uint8: the whole file, not copied."""
        return self._buffer

    @property
    def data(self) -> memoryview:
        """The bytes of the whole file, not copied."""
        return self._buffer.numpy().data

    def described(self, name: str, rank: int, saved: Sequence[Piece]) -> StoredFile:
        """What there is to know of the file as it is now; reads all of it.

        Args:
            name: that it is stored under.
            rank: whose share it is.
            saved: what lies in each vector.
        """
        whole, blocks = checksums_of(self.data, BLOCK_BYTES)
        return StoredFile(
            name=name,
            rank=rank,
            bytes=len(self.data),
            crc32c=whole,
            block_crc32c=blocks,
            vectors=self.starts,
            pieces=[(piece.parameter, piece.start, piece.length) for piece in saved],
        )


def checksums_of(data: memoryview, block: int) -> tuple[str, str]:
    """CRC-32C of all the bytes, and of each block one behind the other; hex."""
    whole, blocks = 0, []
    for start in range(0, len(data), block):
        piece = bytes(data[start : start + block])
        blocks.append(f"{google_crc32c.value(piece):08x}")
        whole = google_crc32c.extend(whole, piece)
    return f"{whole:08x}", "".join(blocks)


def mapped_file(path: Path, size: int) -> Tensor:
    """(size,) uint8: the bytes of a file, made as long as that; what is written to the tensor is in the file.

    Raises:
        OSError: the file system has no room for it. Without the room a write to the tensor would end the process.
    """
    with path.open("a+b") as file:
        file.truncate(size)
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)


def _header(quantities: Sequence[Quantity], length: int) -> bytes:
    """8 bytes of length and JSON padded with spaces, as the safetensors format has it."""
    stride = length * ELEMENT_BYTES
    tensors: Mapping[str, object] = {
        name: {"dtype": "F32", "shape": [length], "data_offsets": [i * stride, (i + 1) * stride]}
        for i, name in enumerate(quantities)
    }
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
