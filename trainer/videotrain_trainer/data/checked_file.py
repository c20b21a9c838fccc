"""Fixed-width columns in one file, which many processes map and each verifies as far as it reads.

Columns lie one behind the other, then a CRC-32C of every block of them. Whoever opens a file knows its columns and the
checksum of those checksums from elsewhere, so nothing in it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from videotrain_api.schema import ApiModel
from videotrain_trainer.checksums import checksum
from videotrain_trainer.errors import DamagedObject

Column = NDArray[Any]
BLOCK: Final = 1 << 16
"""Bytes that share a checksum: what is read and verified for one row of a column."""
ALIGNMENT: Final = 64


class ColumnInfo(ApiModel):
    """Where a column lies in its file."""

    fields: list[tuple[str, str]]
    """Names and NumPy types of a row's fields, packed; one field without a name is a plain column."""
    offset: int
    rows: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a row."""
        return np.dtype(self.fields[0][1] if not self.fields[0][0] else self.fields)


class CheckedFileInfo(ApiModel):
    """What must be known of a file to read it."""

    name: str
    """Relative to the folder of the files; ends with a checksum of the content, so a file never changes."""
    payload: int
    """Bytes of all columns; behind them lie the checksums."""
    crc32c: str
    """Of the checksums."""
    columns: dict[str, ColumnInfo] = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Of the file, bytes."""
        return self.payload + 4 * -(-self.payload // BLOCK)


def checked_bytes(name: str, columns: Mapping[str, Column]) -> tuple[CheckedFileInfo, bytes]:
    """A file of columns. Equal columns give equal bytes.

    Args:
        name: without the checksum and the ending.
        columns: little-endian, of fixed width.
    """
    parts, infos, offset = [], {}, 0
    for key, column in columns.items():
        fields = [(field, column.dtype[field].str) for field in column.dtype.names or ()] or [("", column.dtype.str)]
        infos[key] = ColumnInfo(fields=fields, offset=offset, rows=len(column))
        parts.append(np.ascontiguousarray(column).tobytes())
        parts.append(bytes(-len(parts[-1]) % ALIGNMENT))
        offset += len(parts[-2]) + len(parts[-1])
    payload = b"".join(parts)
    blocks = [google_crc32c.value(payload[at : at + BLOCK]) for at in range(0, len(payload), BLOCK)]
    checksums = np.array(blocks, "<u4").tobytes()
    found = checksum(checksums)
    info = CheckedFileInfo(name=f"{name}-{found}.idx", payload=len(payload), crc32c=found, columns=infos)
    return info, payload + checksums


class CheckedFile:
    """The columns of a file. Safe to use from any thread.

    Args:
        info: of the file.
        data: its bytes, mapped or in memory.
        again: reads the whole file from where it came; asked once what is mapped does not fit.

    Raises:
        DamagedObject: it has another size or other checksums than `info` says, also when it is read again.
    """

    def __init__(self, info: CheckedFileInfo, data: NDArray[np.uint8], again: Callable[[], bytes]) -> None:
        self.info, self._again = info, again
        self._use(data)

    @classmethod
    def at(cls, path: Path, info: CheckedFileInfo, again: Callable[[], bytes]) -> CheckedFile:
        """The file mapped: all processes that map it share its pages, and only those that are read take memory."""
        mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        return cls(info, mapped.view(np.ndarray), again)

    def column(self, name: str) -> Column:
        """A whole column, verified."""
        info = self.info.columns[name]
        self._verify(info.offset, info.rows * info.dtype.itemsize)
        return self._view(info)

    def row(self, name: str, number: int) -> Any:
        """One row of a column, verified."""
        info = self.info.columns[name]
        width = info.dtype.itemsize
        self._verify(info.offset + number * width, width)
        return self._view(info)[number]

    def _view(self, info: ColumnInfo) -> Column:
        return self._data[info.offset : info.offset + info.rows * info.dtype.itemsize].view(info.dtype)

    def _use(self, data: NDArray[np.uint8], last: bool = False) -> None:
        self._data, payload = data, self.info.payload
        self._checksums = data[payload:].view("<u4") if len(data) == self.info.size else np.empty(0, "<u4")
        self._fits = np.zeros(len(self._checksums), np.bool_)
        if len(data) != self.info.size or checksum(self._checksums.tobytes()) != self.info.crc32c:
            if last:
                raise DamagedObject(
                    f"{self.info.name}: has {len(data)} bytes of {self.info.size}, or other checksums than the list of "
                    "files says; write the index again: videotrain-trainer index"
                )
            self._use(np.frombuffer(self._again(), np.uint8), last=True)

    def _verify(self, start: int, length: int) -> None:
        first, last = start // BLOCK, -(-(start + length) // BLOCK)
        for number in np.flatnonzero(~self._fits[first:last]) + first:
            if not self._block_fits(int(number)):
                self._use(np.frombuffer(self._again(), np.uint8), last=True)
                if not self._block_fits(int(number)):
                    raise DamagedObject(
                        f"{self.info.name}: block {number} does not fit its checksum; write the index again: "
                        "videotrain-trainer index"
                    )
            self._fits[number] = True

    def _block_fits(self, number: int) -> bool:
        block = self._data[number * BLOCK : min((number + 1) * BLOCK, self.info.payload)]
        return bool(google_crc32c.value(block) == int(self._checksums[number]))
