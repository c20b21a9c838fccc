"""A user's table of captions in the object store: what is read of it, and what faults of the store do to that."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from support.storage_proxy import StorageProxy, StorageRequest, ThreadedProxy

from videotrain_api.resource.trainrun import Storage
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.curation.caption_table import read_captions
from videotrain_trainer.errors import DataError, StorageDenied, StorageUnavailable
from videotrain_trainer.storage import ObjectStore

VIDEOS = "s3://bucket/raw"
TABLE = pa.table(
    {
        "id": list(range(4)),
        "path": ["a/cat.mp4", f"{VIDEOS}/b/dog.mp4", "./bird", "mute.mp4"],
        "text": ["A cat,\nasleep.", 'A "dog"  runs.', "Ein Vögelchen.", None],
        "score": [0.5] * 4,
    }
)
CAPTIONS = {"a/cat.mp4": "A cat, asleep.", "b/dog.mp4": 'A "dog" runs.', "bird": "Ein Vögelchen."}


def parquet(table: pa.Table, *, checksums: bool = True) -> bytes:
    buffer = io.BytesIO()
    kept_as_they_are = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, buffer, write_page_checksum=checksums, **({} if checksums else kept_as_they_are))
    return buffer.getvalue()


def text(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    return buffer.getvalue()


@pytest.fixture
def proxy(s3: str) -> Iterator[StorageProxy]:
    with ThreadedProxy(s3) as running:
        yield running.proxy


@pytest.fixture
def seen(storage: Storage, proxy: StorageProxy) -> ObjectStore:
    """The store through the proxy."""
    return ObjectStore(Storage(uri=storage.uri, endpoint_url=proxy.url))


@pytest.fixture(params=["csv", "parquet", "folder"])
def uri(request, store: ObjectStore, storage: Storage) -> str:
    """The table, in each of the forms that it may have."""
    if request.param == "folder":
        store.put(f"{storage.uri}/captions/1.parquet", parquet(TABLE[:2]))
        store.put(f"{storage.uri}/captions/more/2.parquet", parquet(TABLE[2:]))
        store.put(f"{storage.uri}/captions/README.md", b"no table")
        return f"{storage.uri}/captions"
    found = f"{storage.uri}/captions.{request.param}"
    store.put(found, text(TABLE) if request.param == "csv" else parquet(TABLE))
    return found


def some(fault: str, times: int, *kinds: str) -> Callable[[StorageRequest], str | None]:
    """The first `times` requests, of these kinds if any are named, suffer."""
    left = Counter(all=times)

    def weather(request: StorageRequest) -> str | None:
        if kinds and request.kind not in kinds:
            return None
        left["all"] -= 1
        return fault if left["all"] >= 0 else None

    return weather


def test_captions_come_by_path_or_stem_from_every_form(seen, uri):
    assert read_captions(seen, uri, VIDEOS) == CAPTIONS


def test_a_table_on_this_machine(store, tmp_path):
    (tmp_path / "my captions.csv").write_bytes(text(TABLE))
    assert read_captions(store, (tmp_path / "my captions.csv").as_uri(), VIDEOS) == CAPTIONS


@pytest.mark.parametrize(
    "fault",
    [
        "reset",
        "cut",
        "404",
        "403",
        "500",
        "503 burst",
        "credentials expired",
        "200 with an error document",
        "stale list",
    ],
)
def test_a_passing_fault_changes_nothing(seen, proxy, uri, fault):
    proxy.weather = some(fault, 2 if fault in ("503 burst", "credentials expired") else 1)
    assert read_captions(seen, uri, VIDEOS) == CAPTIONS
    assert proxy.suffered.total() >= 1


@pytest.mark.parametrize("fault", ["403", "credentials expired"])
def test_lasting_denial_is_told_as_such(storage, proxy, uri, fault):
    proxy.weather = some(fault, 10_000)
    seen = ObjectStore(Storage(uri=storage.uri, endpoint_url=proxy.url), patience=0.5)
    with pytest.raises(StorageDenied, match=rf"^spec\.dataset\.captionTable: {uri}: access denied") as failed:
        read_captions(seen, uri, VIDEOS)
    assert failed.value.exit_code == ExitCode.PERMISSION


def test_a_store_that_keeps_cutting_is_no_fault_of_the_table(seen, proxy, uri):
    proxy.weather = some("cut", 10_000, "GET", "ranged GET")
    with pytest.raises(StorageUnavailable, match=r"^spec\.dataset\.captionTable: s3://"):
        read_captions(seen, uri, VIDEOS)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("t.csv", b"path,caption\na,b\n", "text"),
        ("t.csv", b'path,text\n"a,b\n', "not a table"),
        ("t.parquet", parquet(TABLE.drop_columns(["text"])), "text"),
        ("t.parquet", b"no table at all", "not a table"),
        ("folder/t.txt", b"", "nor a folder of .parquet files, listed 3 times"),
    ],
)
def test_what_is_no_such_table_is_refused_with_the_field(store, storage, name, data, problem):
    store.put(f"{storage.uri}/{name}", data)
    uri = f"{storage.uri}/{name.partition('/')[0]}"
    with pytest.raises(DataError, match=rf"^spec\.dataset\.captionTable: {uri}: .*{problem}"):
        read_captions(store, uri, VIDEOS)


def test_a_missing_table_and_a_missing_bucket_are_named(store, storage):
    with pytest.raises(DataError, match=r"^spec\.dataset\.captionTable: s3://bucket/.*/none\.csv"):
        read_captions(store, f"{storage.uri}/none.csv", VIDEOS)
    with pytest.raises(StorageDenied, match="the bucket does not exist"):
        read_captions(store, "s3://no-such-bucket/t.csv", VIDEOS)


@pytest.mark.parametrize(
    ("name", "write"), [("t.csv", text), ("t.parquet", lambda table: parquet(table, checksums=False))]
)
def test_a_caption_with_a_flipped_bit_is_read_again(seen, proxy, store, storage, name, write):
    """The bit in the middle of the file is one of a caption's, which nothing in the file can tell."""
    captions = {"a.mp4": " ".join(["A cat sleeps."] * 1000)}
    store.put(f"{storage.uri}/{name}", write(pa.table({"path": list(captions), "text": list(captions.values())})))
    proxy.weather = some("flipped bit", 1, "GET", "ranged GET")
    assert read_captions(seen, f"{storage.uri}/{name}", VIDEOS) == captions
    assert proxy.suffered.total() == 1


def test_no_flipped_bit_of_a_page_gives_another_caption(store, tmp_path):
    data, generator, refused = parquet(TABLE), random.Random(4), 0
    path = tmp_path / "captions.parquet"
    pages = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # the footer carries no checksum
    for bit in generator.sample(range(32, 8 * pages), 200):
        harmed = bytearray(data)
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(harmed))
        try:
            assert read_captions(store, path.as_uri(), VIDEOS) == CAPTIONS, f"bit {bit}"
        except DataError:
            refused += 1
    assert refused > 20
