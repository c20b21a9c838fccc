"""A safetensors file in host memory: written into place, checksummed by blocks, uploaded without a further copy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import google_crc32c
import torch
from torch import Tensor

from videotrain_trainer.checkpoint.fragments import ELEMENT_BYTES
from videotrain_trainer.sharded_state import Quantity

ALIGNMENT = 64


class HostFile:
    """Header and vectors of one rank's file in one buffer, reused from checkpoint to checkpoint.

    Args:
        quantities: names of the vectors.
        length: elements of each vector.
        pinned: page-locked memory, for copies from a GPU.
    """

    def __init__(self, quantities: Sequence[Quantity], length: int, *, pinned: bool) -> None:
        header = _header(quantities, length)
        size = len(header) + len(quantities) * length * ELEMENT_BYTES
        self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._buffer[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        stride = length * ELEMENT_BYTES
        self.starts: dict[Quantity, int] = {name: len(header) + i * stride for i, name in enumerate(quantities)}
        self._length = length

    def vector(self, quantity: Quantity) -> Tensor:
        """The float32 vector to write into."""
        start = self.starts[quantity]
        return self._buffer[start : start + self._length * ELEMENT_BYTES].view(torch.float32)

    @property
    def data(self) -> memoryview:
        """The bytes of the whole file, not copied."""
        return self._buffer.numpy().data

    def checksums(self, block: int) -> tuple[str, str]:
        """CRC-32C of the whole file, and of each block one behind the other; hex."""
        data, whole, blocks = self.data, 0, []
        for start in range(0, len(data), block):
            piece = bytes(data[start : start + block])
            blocks.append(f"{google_crc32c.value(piece):08x}")
            whole = google_crc32c.extend(whole, piece)
        return f"{whole:08x}", "".join(blocks)


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
