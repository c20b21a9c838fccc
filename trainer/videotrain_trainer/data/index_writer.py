"""Writes the sample index of an encoded set, from tables like the catalogue or from columns.

Buckets are independent: several processes may write one each (`write_bucket`) before one of them makes the set's index
of what they tell (`publish_index`). Equal samples give equal bytes, so whoever repeats it changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from videotrain_api.storage import layout
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_parquet
from videotrain_trainer.data.checked_file import CheckedFileInfo, Column, checked_bytes
from videotrain_trainer.data.manifest import LATENT_SCHEMA, SCORES, missing_columns, with_all_scores
from videotrain_trainer.data.sample_index import (
    BucketInfo,
    KindInfo,
    SampleIndexInfo,
    ScoreInfo,
    sample_digests,
)
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore

CLIP_ROWS = "clip_rows"
"""Column of the catalogue: names of all rows that a row's clip fits, one to a line, encoded or not: of these each stage
chooses. A catalogue without it was encoded for all of them."""
CATALOGUE_SCHEMA = LATENT_SCHEMA.append(pa.field(CLIP_ROWS, pa.string()))
"""What an encode stage writes."""
LATENT_SIZES = ("latent_frames", "latent_height", "latent_width")
INDEXED = ("uid", "clip", "row", "bucket", "shard", "offset", "length", "crc32c", "text_tokens", *LATENT_SIZES, *SCORES)
"""Columns of the catalogue that an index is made from."""
_TEXTS = ("uid", "clip", "row", "bucket", "shard")
REPEATED = ("row", "bucket", "shard")
_SOURCE_NAME = "source name"
"""Column of a table in the making."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BucketColumns:
    """Samples of one bucket as columns, in order of uid as text."""

    bucket: str
    latent: tuple[int, int, int]
    """Frames, rows and columns of each sample's latent."""
    clip: Column
    """Uids of clips: `V<bytes>` for hexadecimal ones of one length, `S<bytes>` for others."""
    suffix: Column | None
    """Number of what follows the clip's uid in the sample's; None if a uid does not begin with its clip's."""
    suffixes: Sequence[str]
    uid: Column | None
    """`S<bytes>`, where there are no suffixes."""
    kind: Column
    """Numbers of `kinds`."""
    kinds: Sequence[tuple[str, Sequence[str], str | None]]
    """Row that asked for the samples, all rows that their clips have samples of, and their source, if there are any."""
    shard: Column
    """Numbers of `shards`."""
    shards: Sequence[str]
    """Relative to the set."""
    offset: Column
    length: Column
    crc32c: Column
    text_tokens: Column
    scores: dict[str, Column]
    """float64, NaN for none."""


def write_index(
    store: ObjectStore, prefix: str, table: Any, catalogue_bytes: int | None, sources: Sequence[str] = ()
) -> SampleIndexInfo:
    """The index of a whole set.

    Args:
        store: where the set lies.
        prefix: of the set.
        table: pyarrow.Table with the columns INDEXED, in any order of rows; with sources also `source`.
        catalogue_bytes: size of the catalogue beside it, if there is one.
        sources: names of dataset.sources that the set was made of: see `source_names`.
    """
    infos = [write_bucket(store, prefix, columns) for columns in buckets_of(table, sources)]
    return publish_index(store, prefix, infos, catalogue_bytes)


def write_bucket(store: ObjectStore, prefix: str, columns: BucketColumns) -> BucketInfo:
    """The files of one bucket. Nobody reads them before `publish_index` has named them."""
    folder = layout.sample_index(prefix).rsplit("/", 1)[0]
    return _write(columns, lambda name, data: store.put(f"{folder}/{name}", data))


def publish_index(
    store: ObjectStore, prefix: str, buckets: Iterable[BucketInfo], catalogue_bytes: int | None
) -> SampleIndexInfo:
    """index.json: makes the index exist. Write it last."""
    info = _index_of(buckets, catalogue_bytes)
    store.put(layout.sample_index(prefix), sealed_json(info.to_wire()))
    return info


def made_in_memory(table: Any, sources: Sequence[str] = ()) -> tuple[SampleIndexInfo, dict[str, bytes]]:
    """The index of a table, and its files by name."""
    files: dict[str, bytes] = {}
    infos = [_write(columns, files.__setitem__) for columns in buckets_of(table, sources)]
    return _index_of(infos, None), files


def read_catalogue(store: ObjectStore, prefix: str, sources: Sequence[str] = ()) -> Any:
    """The columns of a set's catalogue that an index is made from, as a pyarrow.Table; with sources also `source`.

    Raises:
        DataError: there is no catalogue, or it lacks columns.
    """
    uri = layout.latent_manifest(prefix)
    try:
        columns, repeated = (*INDEXED, CLIP_ROWS, *(("source",) if sources else ())), (*REPEATED, CLIP_ROWS)
        table = read_checked(store, uri, lambda data: unsealed_parquet(data, columns, repeated))
    except ObjectMissing as error:
        raise DataError(f"{uri}: the manifest of the data set is missing; was the stage that makes it run?") from error
    table = with_all_scores(table)
    missing_columns(uri, table, INDEXED)
    return table


def source_names(column: Any, sources: Sequence[str]) -> Any:
    """Names of the sources of clips or samples, by their column `source`, which then begins with one and a slash.

    Raises:
        DataError: one begins with no name of `sources`.
    """
    names = pc.list_element(pc.split_pattern(pc.cast(column, pa.large_string()), "/", max_splits=1), 0)
    strange = sorted(set(pc.unique(names).to_pylist()) - set(sources))
    if strange:
        raise DataError(
            f"column source: {strange[:3]} are none of the sources {list(sources)} that the set was made of"
        )
    return names


def buckets_of(table: Any, sources: Sequence[str] = ()) -> Iterator[BucketColumns]:
    """The buckets of a table with the columns INDEXED, sorted by name; one at a time is held beside it."""
    if sources:
        # Only the names are kept: paths of a bucket may be longer than a column of text can be.
        names = source_names(table.column("source"), sources).dictionary_encode()
        table = table.drop_columns(["source"]).append_column(_SOURCE_NAME, names)
    if CLIP_ROWS not in table.column_names:
        table = _with_clip_rows(table)
    for bucket in sorted(pc.unique(table.column("bucket")).to_pylist()):
        yield columns_of(bucket, table.filter(pc.equal(table.column("bucket"), bucket)))


def columns_of(bucket: str, table: Any) -> BucketColumns:
    """The samples of one bucket.

    Args:
        bucket: its name.
        table: pyarrow.Table with the columns INDEXED and CLIP_ROWS; rows in any order.

    Raises:
        DataError: they do not have one shape.
    """
    table = sortable(table, ("uid", "clip"))
    table = table.take(pc.sort_indices(table.column("uid")))
    shapes = {name: pc.unique(table.column(name)).to_pylist() for name in LATENT_SIZES}
    if any(len(found) != 1 for found in shapes.values()):
        raise DataError(f"bucket {bucket}: its samples have several shapes, of one each was expected: {shapes}")
    clip, suffix, suffixes, uid = _names(table.column("clip"), table.column("uid"))
    kind, kinds = _kinds(table)
    shards, shard = _numbered(table.column("shard"))
    return BucketColumns(
        bucket=bucket,
        latent=tuple(shapes[name][0] for name in LATENT_SIZES),
        clip=clip,
        suffix=suffix,
        suffixes=suffixes,
        uid=uid,
        kind=kind,
        kinds=kinds,
        shard=shard,
        shards=shards,
        offset=table.column("offset").to_numpy(),
        length=table.column("length").to_numpy(),
        crc32c=table.column("crc32c").to_numpy(),
        text_tokens=table.column("text_tokens").to_numpy(),
        scores={name: pc.fill_null(table.column(name), float("nan")).to_numpy() for name in SCORES},
    )


def _index_of(buckets: Iterable[BucketInfo], catalogue_bytes: int | None) -> SampleIndexInfo:
    ordered = sorted(buckets, key=lambda bucket: bucket.bucket)
    return SampleIndexInfo(catalogue_bytes=catalogue_bytes, buckets=ordered)


def _write(columns: BucketColumns, put: Callable[[str, bytes], Any]) -> BucketInfo:
    slug = columns.bucket.replace("/", "-").replace(":", "x")

    def written(name: str, parts: dict[str, Column]) -> CheckedFileInfo:
        info, data = checked_bytes(name, parts)
        put(info.name, data)
        return info

    count, suffixes = len(columns.clip), _texts(columns.suffixes)
    if columns.uid is not None:
        names, digests = {"uid": columns.uid, "clip": columns.clip}, sample_digests(columns.uid, None, None)
    else:
        assert columns.suffix is not None
        names = {"clip": columns.clip, "suffix": _narrow(columns.suffix)}
        digests = sample_digests(columns.clip, columns.suffix, suffixes)
    place = _packed(
        count,
        {
            **names,
            "shard": _narrow(columns.shard),
            "offset": _narrow(columns.offset, "<u4"),
            "length": _narrow(columns.length, "<u4"),
            "crc32c": columns.crc32c.astype("<u4"),
        },
    )
    parts = {
        "kind": _narrow(columns.kind),
        "text_tokens": columns.text_tokens.astype("<u2"),
        "place": place,
        "suffixes": suffixes,
        "shards": _texts(columns.shards),
    }
    return BucketInfo(
        bucket=columns.bucket,
        samples=count,
        latent=columns.latent,
        text_tokens=(int(columns.text_tokens.min()), int(columns.text_tokens.max())),
        kinds=[
            KindInfo(
                row=row,
                clip_rows=sorted(rows),
                source=source,
                samples=int(mine.sum()),
                digest=int(digests[mine].sum()),
            )
            for number, (row, rows, source) in enumerate(columns.kinds)
            for mine in [columns.kind == number]
        ],
        file=written(slug, parts),
        scores={name: _score(written, f"{slug}.{name}", values) for name, values in columns.scores.items()},
    )


def _score(written: Callable[[str, dict[str, Column]], CheckedFileInfo], name: str, values: Column) -> ScoreInfo:
    known = not np.isnan(values).any()
    return ScoreInfo(
        file=written(name, {"score": values.astype("<f8")}),
        lowest=float(values.min()) if known else None,
        highest=float(values.max()) if known else None,
    )


def _packed(count: int, fields: dict[str, Column]) -> Column:
    found = np.empty(count, [(name, column.dtype.str) for name, column in fields.items()])
    for name, column in fields.items():
        found[name] = column
    return found


def _narrow(values: Column, least: str = "u1") -> Column:
    """As unsigned numbers of as few bytes as hold the largest, and no fewer than `least`."""
    wanted = np.result_type(np.min_scalar_type(int(values.max(initial=0))), np.dtype(least))
    return values.astype(wanted.newbyteorder("<"))


def _texts(values: Sequence[str]) -> Column:
    found = np.array([value.encode() for value in values], "S")
    return found if len(found) else np.empty(0, "S1")


def sortable(table: Any, texts: Sequence[str]) -> Any:
    """The table with columns of text that can be put in order; beyond 2 GiB Arrow's plain strings cannot."""
    for name in texts:
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(pa.large_string()))
    return table


def _numbered(column: Any) -> tuple[list[str], Column]:
    """Distinct values, sorted, and the number of each row's."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    coded = coded.unify_dictionaries().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    values, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False)
    used = np.unique(codes)
    ordered = sorted(used.tolist(), key=lambda code: str(values[code]))
    new = np.zeros(len(values), np.int64)
    new[ordered] = np.arange(len(ordered))
    return [str(values[code]) for code in ordered], new[codes]


def _kinds(table: Any) -> tuple[Column, list[tuple[str, list[str], str | None]]]:
    rows, row = _numbered(table.column("row"))
    lists, listed = _numbered(table.column(CLIP_ROWS))
    names: list[str | None] = [None]
    named: Column = np.zeros(1, np.int64)
    if _SOURCE_NAME in table.column_names:
        found, named = _numbered(table.column(_SOURCE_NAME))
        names = [*found]
    numbers, kind = np.unique((row * len(lists) + listed) * len(names) + named, return_inverse=True)
    kinds = []
    for number in numbers.tolist():
        pair, name = divmod(number, len(names))
        kinds.append((rows[pair // len(lists)], lists[pair % len(lists)].split("\n"), names[name]))
    return kind, kinds


def _names(clips: Any, uids: Any) -> tuple[Column, Column | None, list[str], Column | None]:
    """Clips' uids as fixed-width bytes, and what samples' uids have beyond them; or these as they are."""
    size = pc.max(pc.binary_length(clips)).as_py()
    longest = pc.max(pc.binary_length(uids)).as_py()
    even = pc.min(pc.binary_length(clips)).as_py() == size
    begins = even and pc.all(pc.equal(pc.binary_slice(_bytes(uids), 0, size), _bytes(clips))).as_py()
    hexadecimal = even and size % 2 == 0 and pc.all(pc.match_substring_regex(clips, "^[0-9a-f]+$")).as_py()
    clip = _fixed(clips, size)
    if hexadecimal:
        digits = _HEX[clip.view(np.uint8).reshape(len(clip), size)]
        clip = (digits[:, 0::2] << 4 | digits[:, 1::2]).view(f"V{size // 2}")[:, 0]
    if not begins:
        return clip, None, [], _fixed(uids, longest)
    tails = pc.cast(pc.binary_slice(_bytes(uids), size, longest), pa.large_string())
    suffixes, suffix = _numbered(tails)
    return clip, suffix, suffixes, None


_HEX = np.zeros(256, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def _bytes(texts: Any) -> Any:
    return pc.cast(texts, pa.large_binary())


def _fixed(texts: Any, size: int) -> Column:
    """Texts as NumPy's fixed-width bytes."""
    parts = [np.array(chunk.to_numpy(zero_copy_only=False), f"S{size}") for chunk in _bytes(texts).chunks]
    return np.concatenate(parts) if parts else np.empty(0, f"S{max(size or 1, 1)}")


def _with_clip_rows(table: Any) -> Any:
    """The table with the column CLIP_ROWS."""
    pairs = table.select(["clip", "row"]).set_column(1, "row", pc.cast(table.column("row"), pa.string()))
    pairs = pairs.group_by(["clip", "row"]).aggregate([]).sort_by([("clip", "ascending"), ("row", "ascending")])
    lists = pairs.group_by("clip", use_threads=False).aggregate([("row", "list")])
    joined = pc.binary_join(lists.column("row_list"), "\n").dictionary_encode().unify_dictionaries().combine_chunks()
    coded = joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
    of_clip = pc.index_in(table.column("clip"), value_set=lists.column("clip").combine_chunks())
    codes = coded.indices.take(of_clip.combine_chunks())
    return table.append_column(CLIP_ROWS, pa.DictionaryArray.from_arrays(codes, coded.dictionary))
