"""The manifest of a curated set, read by ranges of rows: no process holds the whole of a large one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from videotrain_api.storage import layout
from videotrain_trainer.checksums import READINGS, read_again
from videotrain_trainer.data.manifest import CLIP_SCHEMA, missing_columns, with_all_scores
from videotrain_trainer.errors import DamagedObject, DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore

Found = TypeVar("Found")
FOOTER_BYTES = 8
"""Length of the footer and the file's mark, at the end of a Parquet file."""


class ClipTable:
    """The kept clips of a curated set, numbered in the manifest's order.

    Args:
        store: where the set lies.
        uri: prefix of the set.

    Raises:
        DataError: the manifest is missing or damaged, or lacks columns.
    """

    def __init__(self, store: ObjectStore, uri: str) -> None:
        self._store, self._uri = store, layout.clip_manifest(uri)
        try:
            found = self._read(lambda file: (file.identity(), file.opened.metadata, file.opened.read(["kept"])))
        except ObjectMissing as error:
            raise DataError(
                f"{self._uri}: the manifest of the data set is missing; was the stage that makes it run?"
            ) from error
        self.identity, metadata, kept = found
        there = metadata.schema.to_arrow_schema().empty_table()
        missing_columns(self._uri, with_all_scores(there), CLIP_SCHEMA.names)
        self._names = [name for name in CLIP_SCHEMA.names if name in there.column_names]
        self._kept: NDArray[np.uint32] = np.flatnonzero(kept.column("kept")).astype(np.uint32)
        """Rows of the kept clips."""
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._group: tuple[int, Any] = -1, None
        """The last row group that was read, and its clips."""

    def __len__(self) -> int:
        """Kept clips."""
        return len(self._kept)

    def clips(self, numbers: range) -> list[dict[str, Any]]:
        """Some clips as rows of CLIP_SCHEMA. Neighbouring ranges are read once."""
        wanted = self._kept[numbers.start : numbers.stop]
        found: list[dict[str, Any]] = []
        for group in np.unique(np.searchsorted(self._ends, wanted, side="right")).tolist():
            first, table = int(self._ends[group - 1]) if group else 0, self._group_of(group)
            mine = wanted[(wanted >= first) & (wanted < self._ends[group])]
            found += table.take(pa.array(mine - first)).to_pylist()
        return found

    def columns(self, names: list[str]) -> Any:
        """A pyarrow.Table with some columns of all kept clips."""
        return self._read(lambda file: file.opened.read(names)).take(pa.array(self._kept))

    def _group_of(self, number: int) -> Any:
        if self._group[0] != number:
            table = self._read(lambda file: file.opened.read_row_group(number, self._names))
            self._group = number, with_all_scores(table).select(CLIP_SCHEMA.names).cast(CLIP_SCHEMA)
        return self._group[1]

    def _read(self, read: Callable[[_OpenTable], Found]) -> Found:
        damaged = (ValueError, pa.ArrowException, OSError)
        try:
            return read_again(self._store, lambda store: read(_OpenTable(store, self._uri)), (*damaged, ObjectMissing))
        except damaged as error:
            raise DamagedObject(
                f"{self._uri}: damaged, as {READINGS} readings say; have the stage that makes it run again: {error}"
            ) from error


class _OpenTable:
    """A Parquet file in the object store, of which no more is read than is asked for; its pages are verified."""

    def __init__(self, store: ObjectStore, uri: str) -> None:
        self._file = RangedFile(store, uri, store.stat(uri).size)
        self.opened = pq.ParquetFile(self._file, page_checksum_verification=True)

    def identity(self) -> str:
        """Hash of the footer, which has the places, statistics and the checksum of all content."""
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(size - FOOTER_BYTES)
        length = int.from_bytes(self._file.read(4), "little")
        self._file.seek(size - FOOTER_BYTES - length)
        return hashlib.sha256(self._file.read(length)).hexdigest()


class RangedFile(io.RawIOBase):
    """An object as a file, read by ranged requests.

    Args:
        store: where it lies.
        uri: of the object.
        size: of it, bytes.
    """

    def __init__(self, store: ObjectStore, uri: str, size: int) -> None:
        super().__init__()
        self._store, self._uri = store, uri
        self._size, self._at = size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next reading begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, from the start, from here or from the end."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, fewer at the end, all that are left if negative.

        Raises:
            OSError: not all came.
        """
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._store.get_range(self._uri, self._at, wanted) if wanted else b""
        if len(data) != wanted:
            raise OSError(f"{len(data)} of {wanted} bytes from {self._at} on came")
        self._at += wanted
        return data

    def readinto(self, buffer: Any) -> int:
        """As `read`, for buffers around it."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
