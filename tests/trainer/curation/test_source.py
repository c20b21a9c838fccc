"""The folder of raw videos behind a store that answers wrong: one answer does not empty it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from support.storage_proxy import StorageProxy, StorageRequest, ThreadedProxy

from videotrain_api.resource.trainrun import Storage
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.curation import source
from videotrain_trainer.curation.source import LISTINGS, VideoFolder
from videotrain_trainer.errors import DataError, ObjectMissing, StorageUnavailable, TrainerError
from videotrain_trainer.storage import ObjectStore

MOVIE = bytes(range(256)) * 3000


@pytest.fixture
def proxy(s3: str) -> Iterator[StorageProxy]:
    with ThreadedProxy(s3) as running:
        yield running.proxy


@pytest.fixture
def folder(store, storage: Storage, proxy: StorageProxy) -> VideoFolder:
    """Two videos, one with a text, seen through the proxy."""
    for name, data in {"a.mp4": MOVIE, "b/c.mp4": MOVIE[:99], "a.txt": b"a red car"}.items():
        store.put(f"{storage.uri}/raw/{name}", data)
    return VideoFolder(f"{storage.uri}/raw", Storage(uri=storage.uri, endpoint_url=proxy.url))


def some(kind: str, fault: str, times: int) -> Callable[[StorageRequest], str | None]:
    """The first `times` requests of a kind suffer."""
    left = Counter({kind: times})

    def weather(request: StorageRequest) -> str | None:
        left[request.kind] -= 1
        return fault if left[request.kind] >= 0 and request.kind == kind else None

    return weather


@pytest.mark.parametrize("fault", ["404", "stale list", "200 with an error document", "reset", "cut"])
def test_one_wrong_listing_does_not_empty_the_folder(folder, proxy, fault):
    proxy.weather = some("LIST", fault, 1)
    assert [video.name for video in folder.videos({})] == ["a.mp4", "b/c.mp4"]
    assert proxy.suffered.total() == 1


@pytest.mark.parametrize("fault", ["stale list", "200 with an error document"])
def test_listings_that_stay_empty_name_the_field_and_say_how_often_they_were_asked_for(folder, proxy, fault):
    proxy.weather = some("LIST", fault, 100)
    with pytest.raises(DataError, match=r"^spec\.dataset\.videos: s3://bucket/.*/raw"):
        list(folder.videos({}))
    assert proxy.suffered.total() == 3


@pytest.mark.parametrize("counts", [[1], [2], [3, 0], [3, 1, 0], [2, 0, 1]])
def test_objects_that_a_listing_lacks_are_not_lost(folder, monkeypatch, counts):
    listings_of(monkeypatch, *counts)
    assert [video.name for video in folder.videos({})] == ["a.mp4", "b/c.mp4"]


def test_a_folder_that_keeps_losing_objects_is_the_storages_fault(folder, monkeypatch):
    listings_of(monkeypatch, 3, *[2, 1] * LISTINGS)
    with pytest.raises(StorageUnavailable, match=r"spec\.dataset\.videos: .*listed 5 times"):
        list(folder.videos({}))


def listings_of(monkeypatch, *counts):
    """Listings have only so many objects, one after the other; later ones are whole."""
    left, whole = list(counts), ObjectStore.list_some
    monkeypatch.setattr(ObjectStore, "list_some", lambda *asked: whole(*asked)[: left.pop(0) if left else None])


def test_a_listed_video_and_a_text_that_are_missing_once_are_asked_for_again(folder, proxy, tmp_path):
    first, _ = folder.videos({})
    proxy.weather = some("ranged GET", "404", 1)
    assert folder.fetch(first, tmp_path).read_bytes() == MOVIE
    proxy.weather = some("GET", "404", 1)
    assert folder.caption(first) == "a red car"
    proxy.weather = some("ranged GET", "404", 100)
    with pytest.raises(ObjectMissing, match=r"^spec\.dataset\.videos: s3://bucket/.*/raw/a\.mp4"):
        folder.fetch(first, tmp_path)


def test_listings_that_are_refused_are_no_fault_of_the_data(folder, proxy):
    proxy.weather = some("LIST", "404", 10_000)
    with pytest.raises(TrainerError) as failed:
        list(folder.videos({}))
    assert failed.value.exit_code == ExitCode.STORAGE


def test_a_video_of_which_one_reading_is_wrong_is_read_again(folder, proxy, tmp_path):
    first, _ = folder.videos({})
    proxy.weather = some("ranged GET", "flipped bit", 1)
    assert folder.fetch(first, tmp_path).read_bytes() == MOVIE
    assert proxy.suffered.total() == 1


def test_a_tag_that_no_reading_fits_is_none_of_the_content(folder, proxy, tmp_path):
    """As those of objects that the store encrypts: two readings that agree are believed."""
    first, _ = folder.videos({})
    proxy.weather = some("ranged GET", "flipped bit", 100)
    assert len(folder.fetch(first, tmp_path).read_bytes()) == len(MOVIE)
    assert proxy.suffered.total() == 2


def test_videos_come_before_the_listing_has_ended_each_with_its_text_wherever_windows_end(
    folder, store, storage, monkeypatch
):
    """Windows of every size, over names of which some begin with the stem of others."""
    names = [
        "a.TXT",
        "a.mov",
        "b-1.mp4",
        "b.c.mp4",
        "b.c.txt",
        "b.mp4",
        "b.n.mp4",
        "b.n.txt",
        "b.txt",
        "b/d.mp4",
        "c.txt",
        "c.webm",
        "c/d.txt",
    ]
    for name in names:
        store.put(f"{storage.uri}/more/{name}", name.encode())
    seen = {}
    for size in (1, 2, 3, 5, 100):
        monkeypatch.setattr(source, "LISTED", size)
        more = VideoFolder(f"{storage.uri}/more", storage)
        seen[size] = [(video.name, video.text and video.text.uri.rsplit("/", 1)[1]) for video in more.videos({})]
    assert seen[100] == [
        ("a.mov", "a.TXT"),
        ("b-1.mp4", None),
        ("b.c.mp4", "b.c.txt"),
        ("b.mp4", "b.txt"),
        ("b.n.mp4", "b.n.txt"),
        ("b/d.mp4", None),
        ("c.webm", "c.txt"),
    ]
    assert all(found == seen[100] for found in seen.values())
    asked, whole = [], ObjectStore.list_some
    monkeypatch.setattr(source, "LISTED", 2)
    monkeypatch.setattr(ObjectStore, "list_some", lambda *args: asked.append(args) or whole(*args))
    first = next(VideoFolder(f"{storage.uri}/more", storage).videos({}))
    assert first.name == "a.mov"
    assert len(asked) == 2 * 2  # two windows, each listed twice


def test_listing_takes_two_requests_for_every_window(folder, store, storage, proxy, monkeypatch):
    monkeypatch.setattr(source, "LISTED", 10)
    asked = []
    proxy.weather = lambda request: asked.append(request.kind)
    for number in range(95):
        store.put(f"{storage.uri}/many/{number:03d}.mp4", b"x")
    many = VideoFolder(f"{storage.uri}/many", Storage(uri=storage.uri, endpoint_url=proxy.url))
    assert len(list(many.videos({}))) == 95
    assert asked == ["LIST"] * 2 * 10
