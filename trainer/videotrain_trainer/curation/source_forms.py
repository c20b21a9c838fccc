"""The forms of raw sources: folders, and lists of videos here; what holds videos inside has files of its own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from videotrain_api.resource.trainrun import Dataset, Storage
from videotrain_trainer.checksums import READINGS, read_again
from videotrain_trainer.curation.source import (
    EXTENSIONS,
    TEXT_KEYS,
    RawVideo,
    VideoFolder,
    is_video,
    text_of,
)
from videotrain_trainer.curation.source_parquet import VideoRows
from videotrain_trainer.curation.source_tars import VideoShards
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.file_system import read_files
from videotrain_trainer.storage import ObjectStore

PATH_KEYS: Final = ("path", "file_name", "video")
"""Columns that hold a video's place, as published lists name them; the first one that is there counts."""
LIST_ENDINGS: Final = (".csv", ".parquet", ".jsonl", ".json")
AT_ONCE: Final = 32
"""Videos of a list that are looked up at the same time."""


def open_sources(dataset: Dataset, storage: Storage) -> dict[str, VideoFolder]:
    """The raw sources of a run by name; `dataset.videos` has the empty one.

    Raises:
        DataError: the package of a package:// URI is not installed here.
    """
    forms = {source.name: source.form for source in dataset.sources}
    kinds: dict[str, type[VideoFolder]] = {"list": VideoList, "webdataset": VideoShards, "parquet": VideoRows}
    return {name: kinds.get(forms.get(name, ""), VideoFolder)(uri, storage, name) for name, uri in dataset.raw.items()}


class VideoList(VideoFolder):
    """A table with a row per video: its place, absolute or from the table's folder, and its text."""

    def videos(self, captions: Mapping[str, str]) -> Iterator[RawVideo]:
        """All videos in order of rows.

        Raises:
            DataError: it is no such table, or a row has no path, one that is not there, or that of a row before.
        """
        with self._field_is_named():
            try:
                rows = read_again(self._store, self._agreed, (DataError, ObjectMissing))
            except ObjectMissing as error:
                raise DataError(str(error)) from error
            if not rows:
                raise DataError(f"{self.uri} has no rows")
            self._refuse_doubles(rows)
            found = iter(enumerate(rows, start=1))
            with ThreadPoolExecutor(AT_ONCE) as pool:
                while window := list(islice(found, AT_ONCE)):
                    yield from pool.map(lambda row: self._video_of(row[0], row[1], captions), window)

    def _video_of(self, number: int, row: tuple[str, str | None], captions: Mapping[str, str]) -> RawVideo:
        path, text = row
        uri = self._uri_of(path)
        try:
            found = read_again(self._store, lambda store: store.stat(uri), (ObjectMissing,))
        except ObjectMissing as error:
            raise DataError(f"{self.uri}: row {number}: {uri} is not there") from error
        name = path.partition("://")[2] if "://" in path else path  # with its bucket: another may hold the same key
        video = self._raw(name.lstrip("/"), found, {}, captions)
        return replace(video, caption=text or video.caption)

    def _uri_of(self, path: str) -> str:
        if "://" in path:
            return path
        if path.startswith("/"):
            return f"file://{quote(path)}"
        folder = self._root if not self._root.endswith(LIST_ENDINGS) else self._root.rsplit("/", 1)[0]
        return f"{folder}/{quote(path) if self._local else path}"

    def _refuse_doubles(self, rows: list[tuple[str, str | None]]) -> None:
        first: dict[str, int] = {}
        for number, (path, _) in enumerate(rows, start=1):
            if not path:
                raise DataError(f"{self.uri}: row {number}: no path in the column {' or '.join(PATH_KEYS)}")
            if not is_video(path):
                raise DataError(f"{self.uri}: row {number}: {path!r} is no video: {', '.join(sorted(EXTENSIONS))}")
            other = first.setdefault(path, number)
            if other != number:
                raise DataError(f"{self.uri}: row {number}: {path!r} stands in row {other} already")

    def _agreed(self, store: ObjectStore) -> list[tuple[str, str | None]]:
        """Rows that two readings give alike: such a table has no checksum."""
        rows = read_files(store, self._root, self._read)
        if read_files(store.reconnected(), self._root, self._read) != rows:
            raise DataError(f"{self.uri}: two readings of each differ, {READINGS} times")
        return rows

    def _read(self, files: AbstractFileSystem, path: str) -> list[tuple[str, str | None]]:
        ending = PurePosixPath(path).suffix.lower()
        try:
            if ending in (".csv", ".jsonl", ".json"):
                text = files.cat_file(path).decode("utf-8-sig")
                rows = _JSON_OR_CSV[ending](text)
            else:
                rows = _parquet(files, path)
            return [_row(row, f"{self.uri}: row {number}") for number, row in enumerate(rows, start=1)]
        except (pa.ArrowException, csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.uri}: not a list of videos: {error}") from error


def _row(fields: Any, where: str) -> tuple[str, str | None]:
    if not isinstance(fields, dict):
        raise DataError(f"{where}: {str(fields)[:80]!r} has no columns")
    column = next((key for key in PATH_KEYS if key in fields), None)
    if column is None:
        raise DataError(f"{where}: no column {' or '.join(PATH_KEYS)}; it has {', '.join(map(str, fields))}")
    has_text = any(fields.get(key) for key in TEXT_KEYS)
    return str(fields[column] or "").removeprefix("./"), text_of(fields, where) if has_text else None


def _json(text: str) -> list[Any]:
    found = json.loads(text)
    return found if isinstance(found, list) else [found]


_JSON_OR_CSV: Final = {
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text))),
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines() if line.strip()],
    ".json": _json,
}


def _parquet(files: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    single = path.endswith(".parquet")
    found = [path] if single else sorted(name for name in files.find(path) if name.endswith(".parquet"))
    if not found:
        raise DataError(f"neither a {', '.join(LIST_ENDINGS)} file, nor a folder of .parquet files")
    rows: list[dict[str, Any]] = []
    for name in found:
        with files.open(name, "rb") as file:
            names = pq.read_schema(file).names
            known = [key for key in names if key in (*PATH_KEYS, *TEXT_KEYS)]
            if not set(known) & set(PATH_KEYS):
                raise DataError(f"{name}: no column {' or '.join(PATH_KEYS)}; it has {', '.join(names)}")
            rows += pq.read_table(file, columns=known, page_checksum_verification=True).to_pylist()
    return rows
