"""What a checkpoint holds, and its description on disk.

Every rank writes one safetensors file with one float32 vector per quantity, packed without gaps. index.json says which
run of which parameter lies where, and the CRC-32C of every block of every file, so that any part can be read and
verified by itself. No random state is stored because there is none: all random numbers of training are functions of
(seed, bucket, position), and seed and positions are in the data cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import Field

from videotrain_api.schema import ApiModel
from videotrain_api.storage.artifacts import OrderLine, SealedDocument
from videotrain_trainer.sharded_state import Quantity

INDEX_VERSION: Final = 1
BLOCK_BYTES: Final = 1 << 20
"""Bytes that share a checksum. A ranged read fetches whole blocks, so it is what a read may waste at either end."""


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


class Part(SealedDocument):
    """What a rank tells rank 0 of its file: an object below parts/."""

    file: StoredFile


class CheckpointIndex(ApiModel):
    """What a checkpoint's index.json holds: where the fragments of each parameter lie, and their checksums."""

    version: int = INDEX_VERSION
    block_bytes: int = Field(ge=1)
    """Bytes that share a checksum; the last block of a file may be shorter."""
    shapes: dict[str, list[int]]
    """Every parameter."""
    quantities: list[Quantity]
    files: list[StoredFile]
    """By rank."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One worker process of one generation."""

    run: str
    stage: str
    prefix: str
    """Of the stage in the object store."""
    config_hash: str
    generation: int
    rank: int
    world_size: int
    node: str
    """Machine that it runs on."""

    @property
    def owner(self) -> tuple[str, str]:
        """Run and stage."""
        return self.run, self.stage


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
