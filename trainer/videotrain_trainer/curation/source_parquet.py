"""Parquet files with videos inside, as Hugging Face's sets are published: a row has a video's bytes and its text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.checksums import read_again
from videotrain_trainer.curation.source import EXTENSIONS, TEXT_KEYS, RawVideo, VideoFolder, is_video, tag_of, text_of
from videotrain_trainer.data.clip_table import RangedFile
from videotrain_trainer.engines.board import read_in_order
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.hub import is_hub
from videotrain_trainer.storage import ObjectInfo, ObjectStore

VIDEO_KEYS: Final = ("video", "mp4", "path", "file_name", "image")
"""Columns that hold the videos, as published sets name them; the first one with bytes counts."""
READ_BYTES: Final = 8 * 1024**2
"""Of a column at a time."""
READERS: Final = 4
"""Row groups that a process reads on at a time: its workers do neighbouring rows, some behind the border of a file."""
MOST_PARKED_BYTES: Final = 256 * 1024**2
"""Of rows of a row group that were passed on the way to another one and are kept until they are asked for."""
MOST_GROUP_BYTES: Final = 16 * 1024**3
"""Decoded bytes of the videos of a row group: it is decoded from its first row on by who asks for any."""


class VideoRows(VideoFolder):
    """A folder of Parquet files, a row per video: its bytes, alone or with its path as `datasets` writes them, and its
    text. To list a file its paths and texts are read, not its videos.
    """

    def __init__(self, uri: str, storage: Storage, source: str = "") -> None:
        super().__init__(uri, storage, source)
        self._readers: dict[bool, list[_Rows]] = {True: [], False: []}
        """For first readings, and for those that they are compared with; the one that was used last comes last."""
        self._locks = {True: threading.Lock(), False: threading.Lock()}

    def videos(self, captions: Mapping[str, str]) -> Iterator[RawVideo]:
        """All videos by name of their file, in its order; several files are listed at the same time.

        Raises:
            DataError: there is no Parquet file, one is damaged or has no videos, or a row has no video or the path of
                one before.
        """
        self._check_local()
        files = videos = 0
        with self._field_is_named():
            for window, _ in self._windows():
                found = [(name, one) for name, one in window if name.lower().endswith(".parquet")]
                files += len(found)
                for rows in read_in_order(lambda file: self._of_file(*file, captions), found, lambda *_: None):
                    videos += len(rows)
                    yield from rows
        if not videos:
            raise DataError(f"{self._field}: {self.uri} holds no video ({files} .parquet files), listed again")

    def _of_file(self, name: str, found: ObjectInfo, captions: Mapping[str, str]) -> list[RawVideo]:
        def read(store: ObjectStore) -> list[RawVideo]:
            with _damage_is_told(found), _open(store, found) as file:
                column = _video_column(file, found)
                texts = next((key for key in TEXT_KEYS if key in file.schema_arrow.names), None)
                has_path = f"{column.name}.path" in _leaves(file)
                wanted = [f"{column.name}.path"] * has_path + [texts] * (texts is not None)
                rows: list[RawVideo] = []
                for group in range(file.num_row_groups):
                    size = _row_bytes(file, group, column, found)
                    fields = file.read_row_group(group, columns=wanted).to_pylist() if wanted else []
                    count = file.metadata.row_group(group).num_rows
                    if wanted and len(fields) != count:
                        raise DataError(
                            f"{found.uri}: row group {group} has {len(fields)} rows, its footer says {count}"
                        )
                    for at in range(count):
                        row, here = len(rows), fields[at] if fields else {}
                        path = (here.get(column.name) or {}).get("path") if has_path else None
                        path = str(path).lstrip("/") if path else f"{row:06d}.mp4"
                        video = self._raw(f"{name}/{path}", replace(found, size=size), {}, captions)
                        where = f"{found.uri}: row {row + 1}"
                        if not is_video(path):
                            raise DataError(f"{where}: {path!r} is no video: {', '.join(sorted(EXTENSIONS))}")
                        text = text_of(here, where) if texts and here[texts] else ""
                        rows.append(replace(video, caption=text or video.caption, row=row))
            _refuse_doubles(rows, found)
            return rows

        return read_again(self._store, read, (DataError, ObjectMissing))

    def _copy(self, store: ObjectStore, video: RawVideo, target: Path) -> None:
        """The bytes of a row. Threads that ask for rows about in their order have each row group decoded once."""
        first = store is self._store

        def read(source: ObjectStore) -> bytes:
            with self._locks[first]:
                readers = self._readers[first]
                rows = next((one for one in readers if one.leads_to(video)), None)
                if rows is None:
                    rows = _Rows(source, video.found)
                else:
                    readers.remove(rows)
                with _damage_is_told(video.found):
                    data = rows.take(video)
                self._readers[first] = [*readers, rows][-READERS:]
            return data

        target.write_bytes(read_again(store, read, (DataError,)))


class _Rows:
    """The bytes of the rows of a row group, read on in their order.

    Args:
        store: where it lies.
        found: the file as it was listed; its size does not count.
    """

    def __init__(self, store: ObjectStore, found: ObjectInfo) -> None:
        self.found, self._store = found, store
        self._next = 0
        self._end = 0
        """Of the row group."""
        self._batches: Iterator[Any] = iter(())
        self._parked: dict[int, Any] = {}
        """Columns of one row each, which were passed."""

    def leads_to(self, video: RawVideo) -> bool:
        """Whether the row of the video is one of this row group that is still to come, or was kept."""
        row = video.row
        here = row is not None and (self._next <= row < self._end or row in self._parked)
        return here and video.found.uri == self.found.uri

    def take(self, video: RawVideo) -> bytes:
        """The bytes of a row that `leads_to` has said yes to, or the first one that is asked for.

        Raises:
            DataError: it has none.
        """
        row = video.row
        assert row is not None
        if row >= self._end:
            self._open(row)
        while self._next <= row:
            batch = next(self._batches, None)
            if batch is None:
                raise DataError(f"{self.found.uri}: ends before row {row + 1}, which its footer tells of")
            (self._parked[self._next],) = batch.columns
            self._next += 1
        column = self._parked.pop(row)
        while sum(one.nbytes for one in self._parked.values()) > MOST_PARKED_BYTES:
            del self._parked[next(iter(self._parked))]
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
        data = column[0].as_py()
        if not data:
            raise DataError(f"{self.found.uri}: row {row + 1} has no bytes")
        return bytes(data)

    def _open(self, row: int) -> None:
        there = self._store.stat(self.found.uri)
        # The hub lists other tags than its client's cache has; a version of it is one commit.
        if not is_hub(self.found.uri) and tag_of(there) != tag_of(self.found):
            raise DataError(f"{self.found.uri}: is not the file that was listed; it was replaced while the stage ran")
        file = _open(self._store, replace(self.found, size=there.size))
        start = 0
        for group in range(file.num_row_groups):
            self._end = start + file.metadata.row_group(group).num_rows
            if row < self._end:
                column = _video_column(file, self.found)
                leaf = f"{column.name}.bytes" if pa.types.is_struct(column.type) else column.name
                self._batches = file.iter_batches(batch_size=1, row_groups=[group], columns=[leaf])
                self._next = start
                return
            start = self._end
        raise DataError(f"{self.found.uri}: no row {row + 1}; the file was replaced while the stage ran")


def _open(store: ObjectStore, found: ObjectInfo) -> Any:
    file = RangedFile(store, found.uri, found.size)
    return pq.ParquetFile(file, buffer_size=READ_BYTES, page_checksum_verification=True)


def _video_column(file: Any, found: ObjectInfo) -> Any:
    """The column with bytes of videos."""
    columns = {column.name: column for column in file.schema_arrow if _has_bytes(column.type)}
    named = [key for key in VIDEO_KEYS if key in columns] or (list(columns) if len(columns) == 1 else [])
    if not named:
        raise DataError(
            f"{found.uri}: no column {' or '.join(VIDEO_KEYS)} with bytes of videos; it has "
            f"{', '.join(file.schema_arrow.names)}; a table of paths is a source of form list"
        )
    return columns[named[0]]


def _has_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _leaves(file: Any) -> list[str]:
    return [file.schema.column(number).path for number in range(len(file.schema))]


def _row_bytes(file: Any, group: int, column: Any, found: ObjectInfo) -> int:
    """Bytes of a video in a row group, the mean."""
    leaf = f"{column.name}.bytes" if pa.types.is_struct(column.type) else column.name
    rows, chunk = file.metadata.row_group(group), file.metadata.row_group(group).column(_leaves(file).index(leaf))
    if chunk.statistics is not None and chunk.statistics.null_count:
        raise DataError(
            f"{found.uri}: {chunk.statistics.null_count} of {rows.num_rows} rows of row group {group} have no bytes; "
            "paths of videos that lie elsewhere are a source of form list"
        )
    if chunk.total_uncompressed_size > MOST_GROUP_BYTES:
        raise DataError(
            f"{found.uri}: row group {group} holds {chunk.total_uncompressed_size} bytes of videos, more than "
            f"{MOST_GROUP_BYTES}; write the file with fewer rows in each group"
        )
    return int(chunk.total_uncompressed_size) // max(1, int(rows.num_rows))


def _refuse_doubles(rows: list[RawVideo], found: ObjectInfo) -> None:
    first: dict[str, int] = {}
    for number, video in enumerate(rows, start=1):
        other = first.setdefault(video.name, number)
        if other != number:
            raise DataError(f"{found.uri}: row {number}: the path of {video.name} stands in row {other} already")


@contextmanager
def _damage_is_told(found: ObjectInfo) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{found.uri}: cannot be read as Parquet: {error}") from error
