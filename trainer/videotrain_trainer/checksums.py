"""Objects that a later stage trusts: sealed by a checksum over all of it, and read again before they are blamed.

A JSON object carries its checksum as a field, a Parquet file in its footer, so both stay files that any program reads.
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from videotrain_api.storage.seals import FIELD, content
from videotrain_trainer.errors import DamagedObject, ObjectMissing
from videotrain_trainer.storage import ObjectStore

Parsed = TypeVar("Parsed")
Source = TypeVar("Source", bound="Reconnectable")
READINGS: Final = 3
FOOTER_KEY: Final = b"videotrain-crc32c"
_UNSET: Final = b"0" * 8
_PIECE: Final = 1024**2


class Reconnectable(Protocol):
    """What can be read through connections of its own: what one connection spoils, another may give whole."""

    def reconnected(self) -> Self:
        """The same source, which shares no connection with this one."""


def read_again(source: Source, read: Callable[[Source], Parsed], trouble: tuple[type[Exception], ...]) -> Parsed:
    """What `read` gives. Trouble is believed when READINGS readings meet it, each after the first on connections of its
    own.

    Raises:
        Exception: the trouble of the last reading.
    """
    for _ in range(READINGS - 1):
        try:
            return read(source)
        except trouble:
            source = source.reconnected()
    return read(source)


def read_checked(
    store: ObjectStore,
    uri: str,
    parse: Callable[[bytes], Parsed],
    remedy: str = "have the stage that makes it run again",
) -> Parsed:
    """An object, parsed; one that does not fit, or is missing, is read again before that is believed.

    Args:
        store: where it lies.
        uri: of the object.
        parse: raises ValueError for what is damaged.
        remedy: what people can do about lasting damage.

    Raises:
        DamagedObject: every reading gave something damaged; it names the object.
        ObjectMissing: there is none.
    """
    damaged = (ValueError, pa.ArrowException, OSError)
    try:
        return read_again(store, lambda source: parse(source.get(uri)), (*damaged, ObjectMissing))
    except damaged as error:
        raise DamagedObject(f"{uri}: damaged, as {READINGS} readings say; {remedy}: {error}") from error


def sealed_json(fields: Mapping[str, Any]) -> bytes:
    """A JSON object with the checksum of its other fields."""
    return json.dumps({**fields, FIELD: checksum(content(fields))}, indent=1, ensure_ascii=False).encode()


def unsealed_json(data: bytes) -> dict[str, Any]:
    """The fields of a sealed JSON object.

    Raises:
        ValueError: it is none, or does not fit its checksum.
    """
    fields: dict[str, Any] = json.loads(data)
    stored = fields.pop(FIELD, None) if isinstance(fields, dict) else None
    if stored is None or stored != checksum(content(fields)):
        raise ValueError(f"the content does not fit its checksum {stored!r}")
    return fields


def sealed_parquet(table: Any) -> bytes:
    """A pyarrow.Table as a Parquet file with checksums of its pages and one of the whole file. Equal tables give equal
    bytes.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({FOOTER_KEY: _UNSET})
    data = bytearray(buffer.getvalue())
    place = _seal_of(data)
    data[place : place + len(_UNSET)] = checksum(bytes(data)).encode()
    return bytes(data)


def sealed_parquet_file(path: Path, tables: Iterable[Any], schema: Any) -> None:
    """The same in a file, from tables that are held one at a time."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
        writer.add_key_value_metadata({FOOTER_KEY: _UNSET})
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        place = data.rfind(FOOTER_KEY) + len(FOOTER_KEY) + 2
        data[place : place + len(_UNSET)] = checksum(memoryview(data)).encode()


def unsealed_parquet(data: bytes, columns: Sequence[str] | None = None, repeated: Sequence[str] = ()) -> Any:
    """The pyarrow.Table of a Parquet file. One without a seal, as other programs write it, has its pages verified.

    Args:
        data: the file.
        columns: to read; those that are not there are left out. All if None.
        repeated: columns to read as dictionaries where they are there, for they hold few values often.

    Raises:
        ValueError: it does not fit its checksum; or pyarrow's own errors.
    """
    if FOOTER_KEY in data:
        place = _seal_of(data)
        stored = data[place : place + len(_UNSET)]
        blank = data[:place] + _UNSET + data[place + len(_UNSET) :]
        if stored != checksum(blank).encode():
            raise ValueError(f"the content does not fit its checksum {stored!r}")
    known = pq.read_schema(io.BytesIO(data)).names
    often = [name for name in repeated if name in known]
    with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True, read_dictionary=often) as file:
        return file.read(None if columns is None else [name for name in columns if name in known])


def _seal_of(data: bytes | bytearray) -> int:
    """Where the checksum stands: the footer has, behind the key, a byte for the field and one for the length."""
    return data.rindex(FOOTER_KEY) + len(FOOTER_KEY) + 2


def checksum(data: bytes | bytearray | memoryview) -> str:
    """CRC-32C of single bytes, 8 hex digits."""
    view, value = memoryview(data), 0
    for start in range(0, len(view), _PIECE):  # the library takes immutable bytes only, so a buffer goes by pieces
        value = google_crc32c.extend(value, bytes(view[start : start + _PIECE]))
    return f"{value:08x}"


def joined_checksum(parts: Iterable[tuple[str, int]]) -> str:
    """CRC-32C of bytes whose parts are known by checksum and length alone, in their order; 8 hex digits."""
    value = 0
    for crc, length in parts:
        value = _behind_zeros(value, length) ^ int(crc, 16)
    return f"{value:08x}"


_ONE_BIT: Final = (0x82F63B78, *(1 << bit for bit in range(31)))
"""What a zero bit behind the data does to a checksum: a linear map over GF(2), one column per bit."""


def _behind_zeros(value: int, length: int) -> int:
    """The checksum that so many zero bytes behind the data make of it; the map is squared per bit of the length."""
    columns = _ONE_BIT
    for _ in range(3):
        columns = _squared(columns)
    while length:
        if length & 1:
            value = _mapped(columns, value)
        columns, length = _squared(columns), length >> 1
    return value


def _squared(columns: Sequence[int]) -> tuple[int, ...]:
    return tuple(_mapped(columns, column) for column in columns)


def _mapped(columns: Sequence[int], value: int) -> int:
    result = 0
    for bit, column in enumerate(columns):
        if value >> bit & 1:
            result ^= column
    return result
