"""What a checkpoint holds, and its description on disk.

Every rank writes one safetensors file with one float32 vector per quantity, packed without gaps. index.json says which
run of which parameter lies where, and the CRC-32C of every block of every file, so that any part can be read and
verified by itself. No random state is stored because there is none: all random numbers of training are functions of
(seed, bucket, position), and seed and positions are in the data cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from videotrain_api.schema import ApiModel
from videotrain_api.storage.artifacts import OrderLine
from videotrain_trainer.checkpoint.fragments import Piece

Quantity = Literal["master", "exp_avg", "exp_avg_sq", "ema"]
"""Weights in float32, first and second moment of AdamW, moving average of the weights."""
INDEX_VERSION: Final = 1
BLOCK_BYTES: Final = 1 << 20
"""Bytes that share a checksum. A ranged read fetches whole blocks, so it is what a read may waste at either end."""


class ShardedState(Protocol):
    """The part of the training state that one rank holds."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter of the model, the same on all ranks."""

    @property
    def device(self) -> torch.device:
        """Where it lives."""

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

    def write(self, quantity: Quantity, values: Tensor) -> None:
        """Take the `held` elements from a float32 vector on the host."""


class StoredFile(ApiModel):
    """One rank's file: a part of index.json."""

    name: str
    """Relative to the checkpoint's prefix."""
    rank: int
    bytes: int
    crc32c: str
    """Of the whole file, 8 hex digits."""
    block_crc32c: str
    """Of each block, 8 hex digits each, one behind the other."""
    vectors: dict[Quantity, int]
    """First byte of each vector."""
    pieces: list[tuple[str, int, int]]
    """Parameter, first element in it and length, in packed order."""

    def block_checksum(self, number: int) -> int:
        """CRC-32C of a block."""
        return int(self.block_crc32c[8 * number : 8 * number + 8], 16)


class CheckpointIndex(ApiModel):
    """index.json."""

    version: int = INDEX_VERSION
    block_bytes: int = Field(ge=1)
    """Bytes that share a checksum; the last block of a file may be shorter."""
    shapes: dict[str, list[int]]
    """Every parameter."""
    quantities: list[Quantity]
    files: list[StoredFile]
    """By rank."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes: one worker process of one generation."""

    run: str
    stage: str
    prefix: str
    """Of the stage in the object store."""
    config_hash: str
    generation: int
    rank: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """The moment that a checkpoint holds. Equal on all ranks, but for the order lines, which rank 0 alone has."""

    step: int
    captured_at: datetime
    """End of the step."""
    data_cursor: dict[str, object]
    samples: int
    """Consumed up to this step."""
    lines: Sequence[OrderLine]
    """Order of the steps since the last checkpoint."""
