"""Claims of very many ranges: what a rank asks of the object store does not grow with them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.engines import claims
from videotrain_trainer.engines.claims import LOOKS, Claims
from videotrain_trainer.errors import AlreadyExists, StorageUnavailable
from videotrain_trainer.storage import ObjectInfo, ObjectStore

BLOCK = 16
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryStore:
    """Objects in memory, with counts of requests; a listing counts the entries that it gave as well."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, bytes]] = {}
        self.asked: Counter[str] = Counter()

    def put(self, uri, data, only_if_absent=False):
        self.asked["put"] += 1
        folder = self.folders.setdefault(uri.rsplit("/", 1)[0], {})
        if only_if_absent and uri in folder:
            raise AlreadyExists(uri)
        folder[uri] = data

    def get(self, uri):
        return self.folders[uri.rsplit("/", 1)[0]][uri]

    def exists(self, uri):
        self.asked["exists"] += 1
        return uri in self.folders.get(uri.rsplit("/", 1)[0], {})

    def list(self, prefix):
        found = self.folders.get(prefix, {})
        self.asked.update({"list": 1, "entries": len(found)})
        return [ObjectInfo(uri=uri, size=len(data), etag=str(hash(data)), modified=NOW) for uri, data in found.items()]

    def reconnected(self):
        return self


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(claims, "BLOCK", BLOCK)


def rank_of(store, rank, ranks, count):
    return Claims(store, "memory://g", rank, ranks, count)


def work_off(one: Claims) -> list[int]:
    found = []
    while (claim := one.take()) is not None:
        found.append(claim.number)
        one.finish(claim)
    return found


@pytest.mark.parametrize("count", [8 * BLOCK + 3, 64 * BLOCK + 3])
def test_what_an_idle_rank_asks_for_does_not_grow_with_the_ranges(count):
    store = MemoryStore()
    away, idle, third = (rank_of(store, rank, 3, count) for rank in range(3))
    assert away.take().number == 0
    for number in range(2, count, 3):
        assert third.take().number == number
    for number in range(1, count, 3):
        assert idle.take().number == number
    store.asked.clear()
    claim = idle.take()
    assert claim.number % 3 == 0
    assert store.asked["list"] == 1
    assert store.asked["entries"] <= 3 * BLOCK
    assert store.asked["put"] == 1
    assert not idle.all_finished()
    assert store.asked["list"] == 1


def test_every_range_is_done_once_and_blocks_in_which_all_is_done_are_not_listed_again():
    count, store = 40 * BLOCK + 1, MemoryStore()
    first, second = rank_of(store, 0, 2, count), rank_of(store, 1, 2, count)
    done = work_off(second)
    assert sorted(done) == list(range(count)), "rank 0 has begun nothing"
    assert not second.all_finished(), "rank 0 has to look"
    store.asked.clear()
    assert first.all_finished()
    assert store.asked["list"] == 41
    assert second.all_finished()
    store.asked.clear()
    assert second.take() is None
    assert store.asked["list"] <= LOOKS


def test_rank_0_looks_no_further_than_to_what_is_not_done(monkeypatch):
    monkeypatch.setattr(claims, "LISTERS", 4)
    count, store = 40 * BLOCK, MemoryStore()
    first, second = rank_of(store, 0, 2, count), rank_of(store, 1, 2, count)
    held = first.take()
    work_off(second)
    store.asked.clear()
    assert not first.all_finished()
    assert store.asked["list"] == 4
    first.finish(held)
    assert first.all_finished()
    assert store.asked["list"] <= 4 + 40


def test_a_rank_that_is_gone_loses_all_its_claims_and_a_living_one_none(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    count, store = 30 * BLOCK, MemoryStore()
    gone, alive, idle = (rank_of(store, rank, 3, count) for rank in range(3))
    lost = [gone.take().number for _ in range(5)]
    kept = [alive.take().number for _ in range(5)]
    found = []
    for beat in range(60):
        alive.show_life({"beat": beat})
        found += work_off(idle)
        now[0] += claims.LAPSE_SECONDS / 10
    assert sorted(found) == sorted(set(range(count)) - set(kept))
    assert set(lost) < set(found)


class SpoiledStore(ObjectStore):
    """Real objects in a folder, and answers to the first conditional writes that are not what happened."""

    answers: tuple[tuple[bool, Exception], ...] = ()
    """Of each: whether it was carried out, and what is said."""

    def put(self, uri, data, only_if_absent=False):
        if only_if_absent and self.answers:
            (done, said), *rest = self.answers
            self.answers = tuple(rest)
            if done:
                super().put(uri, data, only_if_absent=True)
            raise said
        return super().put(uri, data, only_if_absent)


@pytest.mark.parametrize("said", [AlreadyExists("409"), StorageUnavailable("reset")])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_no_answer_to_a_claim_ends_a_rank_or_loses_a_range(tmp_path, said, done, times):
    store = SpoiledStore(Storage(uri="s3://unused-bucket"))
    one, other = (Claims(store, tmp_path.as_uri(), rank, 2, 4) for rank in range(2))
    store.answers = ((done, said),) * times
    assert one.take().number == 0
    assert other.take().number == 1
    assert [one.take().number, one.take().number] == [2, 3]
    assert other.take() is None


def test_a_claim_that_another_rank_made_meanwhile_is_not_ours(tmp_path):
    store = SpoiledStore(Storage(uri="s3://unused-bucket"))
    one, other = (Claims(store, tmp_path.as_uri(), rank, 2, 2) for rank in range(2))
    assert [other.take().number, other.take().number] == [1, 0]
    store.answers = ((False, StorageUnavailable("reset")),)
    assert one.take() is None
