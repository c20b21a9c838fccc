"""Where the bytes of a weight file come from: memory, a file, or an object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from videotrain_trainer.storage import ObjectStore


class ByteReader(Protocol):
    """Something that gives byte ranges."""

    @property
    def size(self) -> int:
        """How many bytes there are in all."""

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """`length` bytes from `offset`; fewer if it ends before."""

    def reconnected(self) -> Self:
        """The same bytes through connections of their own."""


@dataclass(frozen=True)
class Memory:
    """Content that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """See ByteReader."""
        return self.data[offset : offset + length]

    def reconnected(self) -> Self:
        """See ByteReader."""
        return self


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytearray:
        """See ByteReader."""
        buffer = bytearray(length)  # one copy: tensors need memory that may be written to
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < length and (count := file.readinto(memoryview(buffer)[done:])):
                done += count
        return buffer[:done] if done < length else buffer

    def reconnected(self) -> Self:
        """See ByteReader."""
        return self


@dataclass(frozen=True)
class StoredObject:
    """An object of the store."""

    store: ObjectStore
    uri: str

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self.store.stat(self.uri).size

    def read(self, offset: int, length: int) -> bytes:
        """See ByteReader."""
        return self.store.get_range(self.uri, offset, length) if length else b""  # no server has a range of nothing

    def reconnected(self) -> Self:
        """See ByteReader."""
        return replace(self, store=self.store.reconnected())
