"""Samples on the cache volume of a node: within their budget, right, and whole whoever dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import pytest

from videotrain_trainer.data import sample_cache
from videotrain_trainer.data.sample_cache import FOLDER, FOLDERS, SampleCache
from videotrain_trainer.data.sample_reader import SampleReader
from videotrain_trainer.data.shards import Member
from videotrain_trainer.node_cache import locked

URI = "s3://bucket/set/shards/a-00000-12345678.tar"
SIZE = 1000


def data(number: int) -> bytes:
    return bytes([number % 251]) * SIZE


def member(number: int) -> Member:
    return Member(name=f"{number}", offset=number * 2048, length=SIZE, crc32c=google_crc32c.value(data(number)))


def opened(volume: Path, budget: int, stage: str, world: str = "1") -> SampleCache:
    """A cache whose volume was counted, if this is who counts."""
    cache = SampleCache(volume, budget, stage, world)
    cache.wait_counted()
    return cache


def files(volume: Path) -> list[Path]:
    return [path for path in (volume / FOLDER).glob("*/*") if path.is_file()]


def stored(volume: Path) -> int:
    return sum(path.stat().st_size for path in files(volume))


class Store:
    """Answers from what is known; counts."""

    def __init__(self) -> None:
        self.asked = 0

    def reconnected(self):
        return self

    def get_range(self, _, offset, length):
        self.asked += 1
        return data(offset // 2048)[:length]


def test_a_sample_is_read_from_the_store_once_per_node(tmp_path):
    store = Store()
    first, second = (SampleReader(store, opened(tmp_path, 10 * SIZE, "one")) for _ in range(2))
    assert [first.read(URI, member(n)) for n in (0, 1, 0, 1)] == [data(n) for n in (0, 1, 0, 1)]
    assert [second.read(URI, member(n)) for n in (0, 1)] == [data(0), data(1)]
    assert store.asked == 2
    found, other = first.counts(), second.counts()
    assert (found.cache_hits, found.cache_misses, found.cache_bytes) == (2, 2, 2 * SIZE)
    assert (other.samples, other.requests, other.cache_hits, other.cache_misses) == (0, 0, 2, 0)


def test_nothing_is_kept_without_a_cache(tmp_path):
    reader = SampleReader(Store())
    reader.read(URI, member(0))
    found = reader.counts()
    assert (found.cache_hits, found.cache_misses, found.cache_bytes) == (0, 0, 0)


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b"", lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_what_does_not_fit_its_checksum_is_read_from_the_store_and_kept_anew(tmp_path, spoil):
    store = Store()
    reader = SampleReader(store, opened(tmp_path, 10 * SIZE, "one"))
    reader.read(URI, member(0))
    (path,) = files(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    assert reader.read(URI, member(0)) == data(0)
    assert path.read_bytes() == data(0)
    assert store.asked == 2
    assert opened(tmp_path, 10 * SIZE, "one", "2").counts().used_bytes == SIZE


def test_what_the_stage_read_stays_when_the_budget_is_used_up(tmp_path):
    cache = opened(tmp_path, 10 * SIZE + 1, "one")
    for number in range(30):
        cache.put(URI, member(number), data(number))
    assert stored(tmp_path) == cache.counts().used_bytes == 10 * SIZE
    assert [number for number in range(30) if cache.get(URI, member(number))] == list(range(10))


def test_what_was_read_before_the_stage_gives_way_longest_unused_first(tmp_path):
    before = opened(tmp_path, 10 * SIZE, "one")
    for number in range(10):
        before.put(URI, member(number), data(number))
    for path in files(tmp_path):
        (number,) = {n for n in range(10) if path.read_bytes() == data(n)}
        os.utime(path, (1000 + number, 1000 + number))
    cache = opened(tmp_path, 10 * SIZE, "two")
    assert cache.get(URI, member(0)) == data(0)  # used by this stage now, so it stays
    cache.put(URI, member(20), data(20))
    left = {number for number in range(30) if cache.get(URI, member(number))}
    assert left == {0, *range(3, 10), 20}
    assert stored(tmp_path) == cache.counts().used_bytes == 9 * SIZE


def test_a_stage_that_goes_on_keeps_what_it_had(tmp_path):
    opened(tmp_path, 2 * SIZE, "one").put(URI, member(0), data(0))
    again = opened(tmp_path, 2 * SIZE, "one")
    for number in range(1, 5):
        again.put(URI, member(number), data(number))
    assert again.get(URI, member(0)) == data(0)


def test_a_cache_whose_count_an_earlier_version_wrote_is_counted_anew(tmp_path):
    cache = opened(tmp_path, 100 * SIZE, "one")
    for number in range(3):
        cache.put(URI, member(number), data(number))
    (tmp_path / FOLDER / "used").write_text("99000")
    (tmp_path / FOLDER / "counted").unlink()
    cache = opened(tmp_path, 100 * SIZE, "one", "2")
    assert cache.counts().used_bytes == stored(tmp_path) == 3 * SIZE
    assert cache.get(URI, member(1)) == data(1)


def _fill(volume: Path, first: int, begun) -> None:
    cache = opened(volume, 200 * SIZE, "one")
    for number in range(first, first + 150):
        cache.put(URI, member(number), data(number))
        begun.set()


@pytest.mark.parametrize("victim", range(3))
def test_processes_share_the_budget_and_one_that_is_killed_spoils_nothing(tmp_path, victim):
    context = multiprocessing.get_context("fork")
    begun = [context.Event() for _ in range(3)]
    processes = [context.Process(target=_fill, args=(tmp_path, 100 * n, begun[n])) for n in range(3)]
    for process in processes:
        process.start()
    assert begun[victim].wait(120)
    os.kill(processes[victim].pid, signal.SIGKILL)
    for process in processes:
        process.join()
    cache = opened(tmp_path, 200 * SIZE, "one", "2")
    assert cache.counts().used_bytes == stored(tmp_path) <= 200 * SIZE
    whole = [number for number in range(350) if cache.get(URI, member(number)) is not None]
    assert len(whole) == len(files(tmp_path)) >= 150


def test_a_disk_that_is_full_costs_no_sample(tmp_path, monkeypatch, caplog):
    cache = opened(tmp_path, 10 * SIZE, "one")
    store = Store()
    reader = SampleReader(store, cache)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert [reader.read(URI, member(n)) for n in range(3)] == [data(n) for n in range(3)]
    assert caplog.text.count("no longer kept") == 1


def test_one_process_of_a_world_counts_what_is_there_and_never_holds_up_the_others(tmp_path, monkeypatch):
    before = opened(tmp_path, 100 * SIZE, "one")
    for number in range(40):
        before.put(URI, member(number), data(number))
    (tmp_path / FOLDER / "used").write_text(json.dumps({"00": 77 * SIZE}))  # as dead processes may leave it
    held, looks, kept = [], [], SampleCache._kept

    def looked(cache, folder):
        looks.append(folder)
        return kept(cache, folder)

    @contextmanager
    def lock(path):
        with locked(path):
            begin = len(looks)
            yield
            held.append(len(looks) - begin)

    monkeypatch.setattr(SampleCache, "_kept", looked)
    monkeypatch.setattr(sample_cache, "locked", lock)
    eight = [SampleCache(tmp_path, 100 * SIZE, "one", "2") for _ in range(8)]
    assert [cache.wait_counted() for cache in eight] == [True] + [False] * 7
    assert sorted(looks) == sorted(FOLDERS) and max(held) == 1
    eight[7].put(URI, member(50), data(50))
    assert eight[7].counts().used_bytes == stored(tmp_path) == 41 * SIZE
    assert SampleCache(tmp_path, 100 * SIZE, "one", "3").wait_counted()
