"""Tar shards of encoded samples, read one sample at a time.

A shard is an uncompressed POSIX tar of safetensors files: any tar reads it, and because the manifest knows where each
member begins, one ranged GET fetches a sample. Shards are named by their own checksum and never change.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import google_crc32c
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from videotrain_trainer.errors import DataError
from videotrain_trainer.storage import disk_full_is_clear

BLOCK = 512


class DamagedSample(DataError):
    """The bytes of a sample are not those that were written."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where a sample lies in its shard."""

    name: str
    offset: int
    """Of the safetensors bytes, behind the tar header."""
    length: int
    crc32c: int
    """Of those bytes."""


class ShardWriter:
    """Writes one shard to a local file. Equal members give equal bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: list[Member] = []
        self._crc = 0
        with disk_full_is_clear(path):
            self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._append(bytes(2 * BLOCK))
        with disk_full_is_clear(self.path):
            self._file.close()

    def add(self, name: str, tensors: Mapping[str, torch.Tensor]) -> Member:
        """Append a sample as `<name>.safetensors`."""
        data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        header = tarfile.TarInfo(f"{name}.safetensors")
        header.size = len(data)
        self._append(header.tobuf(tarfile.USTAR_FORMAT))
        member = Member(name=name, offset=self._file.tell(), length=len(data), crc32c=google_crc32c.value(data))
        self._append(data + bytes(-len(data) % BLOCK))
        self.members.append(member)
        return member

    def object_name(self, bucket: str, number: int) -> str:
        """`<bucket>-<number>-<crc>.tar`; call it when the shard is closed."""
        slug = bucket.replace("/", "-").replace(":", "x")
        return f"{slug}-{number:05d}-{self._crc:08x}.tar"

    def _append(self, data: bytes) -> None:
        with disk_full_is_clear(self.path):
            self._file.write(data)
        self._crc = google_crc32c.extend(self._crc, data)


def check_member(uri: str, member: Member, data: bytes) -> None:
    """Refuse bytes that are not those that were written.

    Raises:
        DamagedSample: they do not fit the member's length or checksum.
    """
    if len(data) != member.length or google_crc32c.value(data) != member.crc32c:
        raise DamagedSample(
            f"{uri}: sample {member.name} at offset {member.offset} does not fit its checksum: {len(data)} of "
            f"{member.length} bytes, crc32c {google_crc32c.value(data):08x} instead of {member.crc32c:08x}"
        )


def tensors_of(uri: str, member: Member, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a sample whose bytes were verified.

    Raises:
        DamagedSample: they are no safetensors file.
    """
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise DamagedSample(f"{uri}: sample {member.name} is not a safetensors file: {error}") from error
