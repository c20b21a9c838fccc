"""Reading samples: one request each, a second one for what is late, and nothing wrong or lost whatever happens."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import timedelta
from itertools import count, islice

import google_crc32c
import pytest
import torch
from support import storage_proxy
from support.request_replay import STALL_SECONDS, percentile, waits
from support.storage_proxy import BURST, BURSTS, READING_FAULTS, ThreadedProxy
from support.training_worlds import SIZES, make_latents, train_config

from videotrain_trainer import storage as storage_module
from videotrain_trainer.data import loader as loader_module
from videotrain_trainer.data import sample_reader
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.sample_reader import Budget, Latencies, SampleReader
from videotrain_trainer.data.sets import open_latents
from videotrain_trainer.data.shards import DamagedSample, Member
from videotrain_trainer.errors import DataError, ObjectMissing, StorageDenied, StorageUnavailable
from videotrain_trainer.storage import ObjectStore

DATA = bytes(range(200))
MEMBER = Member(name="a", offset=0, length=len(DATA), crc32c=google_crc32c.value(DATA))


class Scripted:
    """A store that answers its requests as it is told, one after the other."""

    def __init__(self, *answers) -> None:
        self.answers, self.asked, self._lock = list(answers), 0, threading.Lock()

    def reconnected(self):
        return self

    def get_range(self, *_):
        with self._lock:
            number = self.asked
            self.asked += 1
        answer = self.answers[number] if number < len(self.answers) else DATA
        if isinstance(answer, threading.Event):
            assert answer.wait(60)
            return DATA
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sample_reader, "LATE_UNKNOWN_SECONDS", 0.05)
    monkeypatch.setattr(sample_reader, "PAUSE_SECONDS", 0.01)


def counts(reader):
    found = reader.counts()
    return found.samples, found.requests, found.second, found.second_first, found.again


def test_a_sample_is_one_request():
    store = Scripted()
    reader = SampleReader(store)
    sample_reader.Latencies.late, late = lambda *_: 60.0, sample_reader.Latencies.late
    try:
        assert [reader.read("s3://x", MEMBER) for _ in range(50)] == [DATA] * 50
    finally:
        sample_reader.Latencies.late = late
    assert (store.asked, counts(reader)) == (50, (50, 50, 0, 0, 0))


def test_a_late_answer_is_not_waited_for_where_a_second_one_comes_first():
    stalled = threading.Event()
    reader = SampleReader(Scripted(stalled))
    assert reader.read("s3://x", MEMBER) == DATA  # while the first request still waits
    assert not stalled.is_set()
    assert counts(reader) == (1, 2, 1, 1, 0)
    stalled.set()


def test_a_second_answer_that_is_late_too_is_not_waited_for_either():
    stalled = threading.Event()
    reader = SampleReader(Scripted(stalled, stalled))
    assert reader.read("s3://x", MEMBER) == DATA
    assert counts(reader) == (1, 3, 2, 1, 0)
    stalled.set()


@pytest.mark.parametrize("trouble", [bytes(200), DATA[:50], ObjectMissing("gone"), StorageUnavailable("away")])
def test_a_second_answer_that_is_no_good_leaves_the_first_one(trouble):
    stalled = threading.Event()

    class Releasing(Scripted):
        def get_range(self, *_):
            try:
                return super().get_range()
            finally:
                if threading.current_thread().name.endswith("2"):
                    stalled.set()

    reader = SampleReader(Releasing(stalled, trouble))
    assert reader.read("s3://x", MEMBER) == DATA
    assert counts(reader)[:4] == (1, 2, 1, 0)


def test_what_is_damaged_is_read_again_and_then_told():
    store = Scripted(bytes(200), ObjectMissing("gone"))
    assert SampleReader(store).read("s3://x", MEMBER) == DATA
    with pytest.raises(DamagedSample, match="does not fit its checksum: 50 of 200 bytes"):
        SampleReader(Scripted(*[DATA[:50]] * 3)).read("s3://x", MEMBER)
    with pytest.raises(DamagedSample, match="the shard of sample a is missing, as 3 readings say"):
        SampleReader(Scripted(*[ObjectMissing("gone")] * 3)).read("s3://x", MEMBER)
    with pytest.raises(StorageUnavailable, match="away"):
        SampleReader(Scripted(StorageUnavailable("away"))).read("s3://x", MEMBER)


def test_extra_requests_are_a_share_of_all():
    budget, allowed = Budget(share=0.1, at_once=8), 0
    for _ in range(1000):
        budget.earn()
        allowed += budget.take() + budget.take()
    assert allowed == 8 + 99 + (1000 - 1000 // 10 * 10)


def test_a_store_that_is_slow_as_a_whole_is_not_asked_twice_for_everything():
    released = threading.Event()
    store = Scripted(*[released] * 400)
    reader = SampleReader(store)
    threads = [threading.Thread(target=reader.read, args=("s3://x", MEMBER), daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    for _ in range(400):
        if store.asked >= 20 + sample_reader.EXTRA_AT_ONCE:
            break
        threads[0].join(0.05)
    released.set()
    for thread in threads:
        thread.join()
    assert store.asked <= 20 + sample_reader.EXTRA_AT_ONCE + 20 * sample_reader.EXTRA_SHARE
    assert reader.counts().second >= sample_reader.EXTRA_AT_ONCE


def test_late_is_what_95_of_100_answers_of_the_size_are_not():
    latencies = Latencies()
    for number in range(1, 201):
        latencies.add(1000, number / 100)
        latencies.add(10**6, number)
    assert 1.8 <= latencies.late(900) <= 1.95
    assert 180 <= latencies.late(600_000) <= 195
    assert latencies.late(10**9) == sample_reader.LATE_UNKNOWN_SECONDS


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A set in a folder, and what a loader gives of it when nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    uri = make_latents(folder)
    return folder, batches(ObjectStore.for_storage(train_config(folder, uri).storage), train_config(folder, uri))[0]


def batches(store, config, steps=6):
    data = open_latents(store, config)
    loader = LatentLoader(store, data, data.plan.start(), [range(data.plan.micro_batches)] * len(data.plan.buckets))
    found = []
    try:
        for order in islice(data.plan.walk(data.plan.start()), steps):
            for micro_batch in range(len(order.micro_batches)):
                batch = loader.fetch(order, micro_batch)
                found.append(([key.uid for key in batch.keys], batch.latent_BCTHW, batch.context_BLD))
        return found, loader.skipped, loader.reading()
    finally:
        loader.close()


def uploaded(store, storage, folder):
    for path in (folder / "latents").rglob("*"):
        if path.is_file():
            store.put(f"{storage.uri}/{path.relative_to(folder)}", path.read_bytes())
    return f"{storage.uri}/latents"


def now_and_then(fault):
    """Two requests for samples of each shard, fewer than a sample is read; or five in a row where a fault is one that
    lasts."""
    turns = defaultdict(count)

    def weather(request):
        if "/shards/" not in request.key:
            return None
        number = next(turns[request.key])
        return fault if (number % 9 < BURST if fault in BURSTS else number in (1, 4)) else None

    return weather


@pytest.fixture
def short(monkeypatch):
    """A minute of patience as a second."""
    monkeypatch.setitem(storage_module.CONNECTION, "read_timeout", timedelta(seconds=1))
    monkeypatch.setitem(
        storage_module.RETRIES,
        "backoff",
        {**storage_module.RETRIES["backoff"], "max_backoff": timedelta(milliseconds=200)},
    )
    monkeypatch.setattr(storage_proxy, "SLOW_SECONDS", 2.0)


@pytest.mark.parametrize("fault", READING_FAULTS)
def test_a_loader_gives_the_same_batches_whatever_the_store_does(
    everything, store, storage, s3, fault, short, tmp_path
):
    folder, expected = everything
    uri = uploaded(store, storage, folder)
    with ThreadedProxy(s3) as proxied:
        proxied.proxy.weather = now_and_then(fault)
        config = train_config(tmp_path, uri)
        through = ObjectStore(storage.model_copy(update={"endpoint_url": proxied.proxy.url}))
        found, skipped, reading = batches(through, config, steps=3)
    assert proxied.proxy.suffered[f"ranged GET {fault}"] >= 2
    assert skipped == []
    for (uids, *tensors), (uids_then, *tensors_then) in zip(found, expected, strict=False):
        assert uids == uids_then
        assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_then, strict=True))
    assert reading.samples >= sum(len(uids) for uids, *_ in found)


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("503 burst", StorageUnavailable, r"the object store at http://127.0.0.1:\d+ keeps failing.*503"),
        ("reset", StorageUnavailable, r"the object store at http://127.0.0.1:\d+ keeps failing"),
        ("cut", StorageUnavailable, r"the object store at http://127.0.0.1:\d+ keeps failing"),
        ("silence", StorageUnavailable, r"the object store at http://127.0.0.1:\d+ keeps failing"),
        ("flipped bit", DataError, r"/shards/.*does not fit its checksum"),
        ("short body", DataError, r"/shards/.*does not fit its checksum: \d+ of \d+ bytes"),
        ("wrong length", StorageUnavailable, r"/shards/.*non-partial response when range requested"),
        ("404", DataError, r"/shards/.*: the shard of sample .* is missing, as 3 readings say"),
        ("credentials expired", StorageDenied, r"access denied by .*ExpiredToken"),
        ("403", StorageDenied, r"access denied by .*RequestTimeTooSkewed"),
    ],
)
def test_a_fault_that_does_not_end_ends_the_stage_with_its_name(
    everything, store, storage, s3, fault, error, told, short, tmp_path, monkeypatch
):
    monkeypatch.setitem(storage_module.RETRIES, "max_retries", 2)
    uri = uploaded(store, storage, everything[0])
    with ThreadedProxy(s3) as proxied:
        proxied.proxy.weather = lambda request: fault if "/shards/" in request.key else None
        through = ObjectStore(storage.model_copy(update={"endpoint_url": proxied.proxy.url}), patience=0.5)
        with pytest.raises(error, match=told):
            batches(through, train_config(tmp_path, uri), steps=1)


def test_a_store_whose_every_body_trickles_is_waited_for(everything, store, storage, s3, short, tmp_path):
    folder, expected = everything
    uri = uploaded(store, storage, folder)
    with ThreadedProxy(s3) as proxied:
        proxied.proxy.weather = lambda request: "slow body" if "/shards/" in request.key else None
        through = ObjectStore(storage.model_copy(update={"endpoint_url": proxied.proxy.url}))
        found, skipped, _ = batches(through, train_config(tmp_path, uri), steps=1)
    assert skipped == [] and found
    for (uids, *tensors), (uids_then, *tensors_then) in zip(found, expected, strict=False):
        assert uids == uids_then
        assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_then, strict=True))


def test_samples_are_asked_for_in_the_order_in_which_steps_need_them(everything, monkeypatch):
    folder, expected = everything
    config = train_config(folder, f"file://{folder}/latents")
    store = ObjectStore.for_storage(config.storage)
    data = open_latents(store, config)
    gate, asked = threading.Event(), []
    read = SampleReader.read

    def gated(self, uri, member):
        asked.append(member.name)
        assert gate.wait(60)
        return read(self, uri, member)

    monkeypatch.setattr(SampleReader, "read", gated)
    loader = LatentLoader(store, data, data.plan.start(), [range(data.plan.micro_batches)] * len(data.plan.buckets))
    needed = [uid for uids, *_ in expected for uid in uids]
    ahead = sum(len(uids) for uids, *_ in expected[: loader_module.MICRO_BATCHES_AHEAD])
    try:
        for number in range(400):
            if len(asked) >= min(ahead, 8):
                break
            gate.wait(0.02 * (number > 0))
        # As many as there are threads wait at the gate; who comes first among them is the system's choice.
        first = min(ahead, 8)
        assert sorted(asked[:first]) == sorted(needed[:first])
    finally:
        gate.set()
        loader.close()
    assert set(SIZES) == {bucket.name for bucket in data.plan.buckets}


@pytest.mark.parametrize("seed", range(2))
def test_stalled_requests_hardly_lengthen_the_wait_for_a_sample(seed, monkeypatch):
    monkeypatch.setattr(sample_reader, "LATE_UNKNOWN_SECONDS", 2.0)
    unharmed, asked = waits(0.0, 4000, seed)
    stalled, asked_then = waits(0.01, 4000, seed)
    assert percentile(stalled, 99) < 1.3 * percentile(unharmed, 99)
    assert max(stalled) < 0.2 * STALL_SECONDS  # nobody waits for a stalled answer
    # Twenty-to-one odds of a late answer are a twentieth more requests; the budget allows a tenth.
    assert asked.requests < 1.1 * asked.samples
    assert asked_then.requests < 1.1 * asked_then.samples


def test_without_second_requests_one_sample_in_a_hundred_waits_for_a_stalled_answer():
    found, asked = waits(0.01, 4000, 0, prepare=lambda reader: setattr(reader, "_budget", Budget(0.0, 0.0)))
    assert 20 < sum(seconds >= STALL_SECONDS for seconds in found) < 80
    assert asked.requests == asked.samples
