"""The sample index: where every sample of an encoded set lies, in fixed-width rows that are mapped and never parsed.

<set>/index/index.json            SampleIndexInfo, sealed; written last, and only then the set has an index
<set>/index/<bucket>-<crc>.idx    a file per bucket, a row per sample, in order of uid: what training reads
<set>/index/<bucket>.<score>-<crc>.idx   a score of each row, which is read where a stage selects by it

`index_writer` writes it beside the Parquet catalogue (`manifest`), which has captions and all else and is for people.
A row takes about 30 bytes: the clip's uid as bytes where it is hexadecimal, what a sample's uid has behind its clip's
as a number, shard, offset, length and checksum; and in columns of their own, which opening may have to read whole, what
is alike of many samples (`kind`) and the tokens of the caption.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from videotrain_api.schema import ApiModel
from videotrain_api.storage import layout
from videotrain_trainer.checksums import checksum, read_checked, unsealed_json
from videotrain_trainer.data.checked_file import CheckedFile, CheckedFileInfo, Column
from videotrain_trainer.errors import DataError, ObjectMissing, TrainerError
from videotrain_trainer.files import local_path
from videotrain_trainer.node_cache import NodeCache
from videotrain_trainer.storage import ObjectInfo, ObjectStore

INDEX_VERSION = 1
FETCHERS = 8
"""Files of an index that are fetched at the same time."""
log = logging.getLogger(__name__)


class KindInfo(ApiModel):
    """What is alike of many samples of a bucket, so that a stage takes or leaves them by it."""

    row: str
    """buckets.row_name of the row that asked for them."""
    clip_rows: list[str]
    """All rows that their clips have samples of, sorted: which of them a clip is trained in, each stage decides."""
    source: str | None = None
    """Of dataset.sources; None in a set that was made of one folder."""
    samples: int
    digest: int
    """Sum of their `sample_digests`, modulo 2^64."""


class ScoreInfo(ApiModel):
    """A score of a bucket's samples."""

    file: CheckedFileInfo
    lowest: float | None = None
    """None if a sample has no score."""
    highest: float | None = None
    """Likewise."""


class BucketInfo(ApiModel):
    """The samples of one tensor shape."""

    bucket: str
    """buckets.bucket_name."""
    samples: int
    latent: tuple[int, int, int]
    """Frames, rows and columns of each sample's latent."""
    text_tokens: tuple[int, int]
    """Fewest and most of a caption."""
    kinds: list[KindInfo]
    file: CheckedFileInfo
    scores: dict[str, ScoreInfo]


class SampleIndexInfo(ApiModel):
    """index/index.json: all that opening needs."""

    version: int = INDEX_VERSION
    catalogue_bytes: int | None = None
    """Size of the Parquet catalogue beside it, by which a changed one is noticed; None if there is none."""
    buckets: list[BucketInfo]
    """Sorted by name."""


class SamplePlace(NamedTuple):
    """A row of the index."""

    uid: str
    shard: str
    """Relative to the set."""
    offset: int
    length: int
    crc32c: int
    text_tokens: int


@dataclass
class BucketIndex:
    """The rows of one bucket. Its file is opened when a row is first asked for, by whichever thread.

    Args:
        info: of the bucket.
        read: opens a file of the index.
        uri: prefix of the set.
    """

    info: BucketInfo
    read: Callable[[CheckedFileInfo], CheckedFile]
    uri: str

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: Future[CheckedFile] | None = None

    def file(self) -> CheckedFile:
        """The bucket's file; who asks first opens it while the others wait."""
        with self._lock:
            mine = self._opened is None or (self._opened.done() and self._opened.exception() is not None)
            if mine:
                self._opened = Future()
            opened = self._opened
        assert opened is not None
        if mine:
            try:
                opened.set_result(self.read(self.info.file))
            except BaseException as error:  # told to whoever waits, and tried again by who asks next
                opened.set_exception(error)
        return opened.result()

    def place(self, number: int) -> SamplePlace:
        """A row as training needs it."""
        file = self.file()
        row = file.row("place", number)
        return SamplePlace(
            uid=self._uid(file, row),
            shard=text_of(file.row("shards", int(row["shard"]))),
            offset=int(row["offset"]),
            length=int(row["length"]),
            crc32c=int(row["crc32c"]),
            text_tokens=int(file.row("text_tokens", number)),
        )

    def uid(self, number: int) -> str:
        """The uid of a row."""
        file = self.file()
        return self._uid(file, file.row("place", number))

    def clips(self) -> Column:
        """Uids of all rows' clips, as they are stored: see `text_of`."""
        return self.file().column("place")["clip"]

    def score(self, name: str) -> Column:
        """A score of all rows, float64, NaN for none."""
        return self.read(self.info.scores[name].file).column("score")

    def digests(self, numbers: Column) -> Column:
        """`sample_digests` of some rows."""
        file = self.file()
        places = file.column("place")[numbers]
        if "uid" in (places.dtype.names or ()):
            return sample_digests(places["uid"], None, None)
        return sample_digests(places["clip"], places["suffix"], file.column("suffixes"))

    @staticmethod
    def _uid(file: CheckedFile, row: Any) -> str:
        if "uid" in row.dtype.names:
            return text_of(row["uid"])
        return text_of(row["clip"]) + text_of(file.row("suffixes", int(row["suffix"])))


def text_of(stored: Any) -> str:
    """A text of the index: hexadecimal ones are stored as the bytes that they mean, others as UTF-8."""
    return stored.tobytes().hex() if isinstance(stored, np.void) else bytes(stored).decode()


@dataclass(frozen=True)
class SampleIndex:
    """An index that is open."""

    uri: str
    """Prefix of the set."""
    identity: str
    """Checksum of index.json, and so of all files."""
    buckets: tuple[BucketIndex, ...]

    @property
    def samples(self) -> int:
        """Of all buckets."""
        return sum(bucket.info.samples for bucket in self.buckets)

    def fetch_ahead(self, buckets: Iterable[BucketIndex]) -> None:
        """Have files brought to this machine beside whatever is done meanwhile. A row that is asked for before is
        waited for; what fails is tried again when a row is needed.
        """
        waiting = list(buckets)

        def work() -> None:
            while waiting:
                bucket = waiting.pop(0)
                try:
                    bucket.file()
                except (TrainerError, IndexError) as error:
                    log.warning("index of %s: %s", bucket.info.bucket, error)

        for number in range(min(FETCHERS, len(waiting))):
            threading.Thread(target=work, name=f"index-{number}", daemon=True).start()


def open_index(store: ObjectStore, uri: str, cache: NodeCache | None, samples: str | None = None) -> SampleIndex:
    """The index of an encoded set. One object is read; files come to the node when they are needed, and once.

    Args:
        store: where the set lies.
        uri: prefix of the set.
        cache: of this node; without one, files of an object store are held in memory.
        samples: prefix of the set that the samples lie in, if that is another one.

    Raises:
        ObjectMissing: the set has no index.
        DataError: the catalogue beside it was changed since.
    """
    place = layout.sample_index(uri)
    remedy = f"write it again: videotrain-trainer index {uri}"
    info, identity = read_checked(store, place, lambda data: (parsed(data), checksum(data)), remedy=remedy)
    if info.version != INDEX_VERSION:
        raise DataError(f"{place}: version {info.version}, this trainer reads {INDEX_VERSION}; {remedy}")
    if info.catalogue_bytes is not None:
        try:
            found = store.stat(layout.latent_manifest(uri)).size
        except ObjectMissing:
            found = info.catalogue_bytes  # nobody trains on it
        if found != info.catalogue_bytes:
            raise DataError(
                f"{layout.latent_manifest(uri)}: {found} bytes, the index was written beside one of "
                f"{info.catalogue_bytes}; what was changed there is not in the index: {remedy}"
            )
    folder = place.rsplit("/", 1)[0]

    def read(file: CheckedFileInfo) -> CheckedFile:
        there = f"{folder}/{file.name}"

        def whole() -> bytes:
            return store.get(there)

        if there.startswith("file://"):
            return CheckedFile.at(local_path(there), file, whole)
        # The name says what is in it, so nobody has to be asked whether it has changed.
        known = ObjectInfo(uri=there, size=file.size, etag=file.crc32c, modified=datetime.fromtimestamp(0, UTC))
        kept = cache.listed(known) if cache is not None else None
        if kept is not None:
            return CheckedFile.at(kept.path, file, whole)
        return CheckedFile(file, np.frombuffer(whole(), np.uint8), whole)

    return SampleIndex(uri, identity, tuple(BucketIndex(bucket, read, samples or uri) for bucket in info.buckets))


def index_in_memory(uri: str, info: SampleIndexInfo, files: Mapping[str, bytes]) -> SampleIndex:
    """An index whose files were made in this process."""

    def read(file: CheckedFileInfo) -> CheckedFile:
        return CheckedFile(file, np.frombuffer(files[file.name], np.uint8), lambda: files[file.name])

    identity = checksum(info.model_dump_json().encode())
    return SampleIndex(uri, identity, tuple(BucketIndex(bucket, read, uri) for bucket in info.buckets))


def parsed(data: bytes) -> SampleIndexInfo:
    """index.json.

    Raises:
        ValueError: it is none, or does not fit its checksum.
    """
    return SampleIndexInfo.model_validate(unsealed_json(data))


def sample_digests(texts: Column, suffix: Column | None, suffixes: Column | None) -> Column:
    """64 bits of each uid. Their sum names a set of samples, in whatever order and parts it is added up.

    Args:
        texts: of the rows, fixed-width bytes: the uid, or what its suffix follows.
        suffix: number of each row's suffix.
        suffixes: their texts.
    """
    found = _folded(texts)
    if suffix is not None and suffixes is not None:
        found = _mixed(found ^ _folded(suffixes)[suffix])
    return found


def _folded(texts: Column) -> Column:
    """A hash of each fixed-width text; zeros behind it do not count, so neither does the width."""
    width = -(-texts.dtype.itemsize // 8)
    padded = np.zeros((len(texts), 8 * width), np.uint8)
    raw = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), texts.dtype.itemsize)
    padded[:, : texts.dtype.itemsize] = raw
    words = padded.view("<u8")
    found = np.zeros(len(texts), np.uint64)
    for place in range(width):
        word = words[:, place]
        found = np.where(word == 0, found, _mixed(found ^ word))
    return found


def _mixed(values: Column) -> Column:
    """The finaliser of SplitMix64."""
    mixed: Column = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
