"""Parquet tables that say what a curated or an encoded set holds, for people and for the stages that make sets.

Payloads never change; texts, scores and places live here, so a new score or caption is a new table over the
same objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from videotrain_api.resource.stages import ScoreName
from videotrain_trainer.checksums import read_checked, sealed_parquet, unsealed_parquet
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore

SCORES: tuple[str, ...] = get_args(ScoreName)
"""Columns that ScoreBounds may name; both tables have them. Null where a score was not measured."""
_SCORE_FIELDS = [(name, pa.float64()) for name in SCORES]

CLIP_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),  # hash of the raw file's content, the span and the curation parameters
        ("source", pa.string()),  # path of the raw video below the dataset's folder
        ("start", pa.float64()),  # seconds in the raw video
        ("end", pa.float64()),
        ("uri", pa.string()),  # see layout.clip_file; empty if there is no file. Dropped clips may have one
        ("bytes", pa.int64()),
        ("crc32c", pa.uint32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("caption", pa.string()),
        *_SCORE_FIELDS,
        ("phash", pa.string()),  # three perceptual hashes of 16 hex digits
        ("kept", pa.bool_()),
        ("reason", pa.string()),  # why it was dropped; empty for kept clips
        ("detail", pa.string()),
        ("value", pa.float64()),  # of the score that dropped it
        ("bound", pa.float64()),
    ]
)
"""One row per clip, kept or dropped, in order of uid."""

EMBEDDING_SCHEMA = pa.schema([("uid", pa.string()), ("embedding", pa.binary())])
"""Embeddings of clips, int8, beside their catalogue, which every stage reads."""

LATENT_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("clip", pa.string()),  # uid of the clip
        ("row", pa.string()),  # buckets.row_name of the row that asked for the sample
        ("bucket", pa.string()),  # buckets.bucket_name: one tensor shape
        ("shard", pa.string()),  # relative to the set
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc32c", pa.uint32()),
        ("latent_frames", pa.int32()),
        ("latent_height", pa.int32()),
        ("latent_width", pa.int32()),
        ("frames", pa.int32()),
        ("start", pa.int32()),  # first frame in the clip
        ("fps", pa.float64()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("text_tokens", pa.int32()),  # of the caption in its longest style, padding not counted
        *_SCORE_FIELDS,
    ]
)
"""One row per encoded sample, in order of uid."""


def to_parquet(rows: Sequence[Mapping[str, Any]], schema: Any) -> bytes:
    """The table as a Parquet file, rows in order of uid. Equal rows give equal bytes."""
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["uid"])), schema=schema)
    return sealed_parquet(table)


def read_table(store: ObjectStore, uri: str, schema: Any) -> Any:
    """A pyarrow.Table with the columns of `schema`.

    Raises:
        DataError: the object is missing, is no Parquet file or has other columns.
    """
    try:
        table = read_checked(store, uri, unsealed_parquet)
    except ObjectMissing as error:
        raise DataError(f"{uri}: the manifest of the data set is missing; was the stage that makes it run?") from error
    table = with_all_scores(table)
    missing_columns(uri, table, schema.names)
    return table.select(schema.names).cast(schema)


def missing_columns(uri: str, table: Any, names: Iterable[str]) -> None:
    """Refuse a table that lacks columns.

    Raises:
        DataError: it does.
    """
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(f"{uri}: columns {missing} are missing; it has {table.column_names}")


def with_all_scores(table: Any) -> Any:
    """The pyarrow.Table with a column for each score; those of later versions were not measured then."""
    for name in SCORES:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.float64()))
    return table


def kept_clips(table: Any) -> Any:
    """Rows of a clip table that were not dropped."""
    return table.filter(pc.field("kept"))


def uids_hash(uids: Iterable[str]) -> str:
    """16 hex digits that name a set of samples, not the bytes of a file."""
    digest = hashlib.sha256()
    for uid in sorted(uids):
        digest.update(uid.encode() + b"\n")
    return digest.hexdigest()[:16]
