"""spec.dataset.captionTable: captions that a user keeps in a table, as data sets of videos are published."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from videotrain_trainer.checksums import READINGS, read_again
from videotrain_trainer.errors import DataError, ObjectMissing, StorageUnavailable, TrainerError
from videotrain_trainer.file_system import read_files
from videotrain_trainer.storage import ObjectStore

COLUMNS = ["path", "text"]
FIELD = "spec.dataset.captionTable"


def read_captions(store: ObjectStore, uri: str, videos: str | None) -> dict[str, str]:
    """Captions by the path of a video below its folder, or by its stem: what stands in the column `path`.

    Of a Parquet file only the two columns are fetched. Such a table has no checksum that covers it, so two readings, by
    connections of their own, must agree before one is believed.

    Args:
        store: serves s3:// and file://.
        uri: a .csv or .parquet file, or a folder of .parquet files.
        videos: spec.dataset.videos, if that is set; a path in the table may begin with it.

    Raises:
        DataError: there is no such table, it is damaged, or it has other columns.
    """
    try:
        table = read_again(store, lambda source: _agreed(source, uri), (DataError, ObjectMissing))
    except ObjectMissing as error:
        raise DataError(f"{FIELD}: {error}") from error
    except TrainerError as error:
        raise type(error)(f"{FIELD}: {uri}: {str(error).removeprefix(f'{uri}: ')}") from error
    prefix = f"{videos.rstrip('/')}/" if videos else ""
    pairs = zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)
    captions = {str(path).removeprefix(prefix).removeprefix("./"): str(text or "").split() for path, text in pairs}
    return {path: " ".join(words) for path, words in captions.items() if words}


def _agreed(store: ObjectStore, uri: str) -> Any:
    table = read_files(store, uri, _read)
    if not read_files(store.reconnected(), uri, _read).equals(table):
        raise DataError(f"two readings of each differ, {READINGS} times")
    return table


def _read(files: AbstractFileSystem, path: str) -> Any:
    try:
        table = _csv(files, path) if path.endswith(".csv") else _parquet(files, path)
        return table.select(COLUMNS).cast(pa.schema([(name, pa.string()) for name in COLUMNS]))
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise DataError(_misfit(error)) from error
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # of Arrow: a page does not fit its checksum
            raise DataError(_misfit(error)) from error
        raise


def _misfit(error: Exception) -> str:
    return f"not a table with the columns {' and '.join(COLUMNS)}, as {READINGS} readings say: {error}"


def _csv(files: AbstractFileSystem, path: str) -> Any:
    size, data = files.info(path)["size"], files.cat_file(path)
    if len(data) != size:
        raise StorageUnavailable(f"{len(data)} of {size} bytes came")
    texts = csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), include_columns=COLUMNS)
    lines = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(io.BytesIO(data), parse_options=lines, convert_options=texts)


def _parquet(files: AbstractFileSystem, path: str) -> Any:
    single = path.endswith(".parquet")
    found = [path] if single else sorted(name for name in files.find(path) if PurePosixPath(name).suffix == ".parquet")
    if not found:
        raise DataError(f"neither a .csv nor a .parquet file, nor a folder of .parquet files, listed {READINGS} times")
    tables = []
    for name in found:
        with files.open(name, "rb") as file:
            tables.append(pq.read_table(file, columns=COLUMNS, page_checksum_verification=True).select(COLUMNS))
    return pa.concat_tables(tables, promote_options="permissive")
