"""What one answer of the object store may do to checkpoints: a real S3 server behind a proxy that spoils answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from support.checkpoint_worlds import load, make_writers, save
from support.storage_proxy import StorageRequest, ThreadedProxy

from videotrain.objectstore.s3_server import ObjectServer
from videotrain_api.resource.trainrun import CheckpointPolicy, Storage
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.checkpoint.catalog import find_steps, stored_steps
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.errors import StorageUnavailable, TrainerError
from videotrain_trainer.storage import ObjectStore

SOME = CheckpointPolicy(keep_last=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Endpoint of a SeaweedFS server with the bucket `bucket`."""
    loop = asyncio.new_event_loop()
    started = loop.run_until_complete(ObjectServer.start(tmp_path_factory.mktemp("s3"), "s3://bucket/x"))
    yield started
    loop.run_until_complete(started.stop())
    loop.close()


@pytest.fixture(scope="module")
def proxy(server):
    with ThreadedProxy(server.endpoint_url) as threaded:
        yield threaded.proxy


@pytest.fixture(autouse=True)
def keys(server, monkeypatch, credentials):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_key)


@pytest.fixture
def whole(server) -> ObjectStore:
    """The store itself."""
    return ObjectStore.for_storage(Storage(uri="s3://bucket/x", endpoint_url=server.endpoint_url))


@pytest.fixture
def spoilt(proxy):
    """The store through the proxy."""
    url = f"http://127.0.0.1:{proxy._runner.addresses[0][1]}"
    yield ObjectStore(Storage(uri="s3://bucket/x", endpoint_url=url), 20)
    proxy.weather = lambda _: None


@pytest.fixture
def prefix(whole, tmp_path):
    """A stage with checkpoints at steps 10, 20 and 30, saved by a world of two."""
    prefix = f"s3://bucket/{tmp_path.name}/stage"
    writers = make_writers(whole, prefix, 2, policy=SOME)
    for step in (10, 20, 30):
        save(writers, step, since=step - 10)
    return prefix


def once(chosen: Callable[[StorageRequest], bool], fault: str) -> Callable[[StorageRequest], str | None]:
    left = [fault]
    return lambda asked: left.pop() if left and chosen(asked) else None


def claim(store, prefix, generation=2, saved_step=30):
    """What rank 0 does first."""
    Fence(store, prefix, generation).raise_()
    return find_steps(store, prefix, saved_step).complete


SINGLE = {
    "bit of a ranged read": (lambda r: r.kind == "ranged GET", "flipped bit"),
    "data file not there": (lambda r: r.kind == "ranged GET", "404"),
    "commit.json cut": (lambda r: r.key.endswith("step-00000030/commit.json"), "cut"),
    "commit.json flipped": (lambda r: r.key.endswith("step-00000030/commit.json"), "flipped bit"),
    "commit.json not there": (lambda r: r.key.endswith("step-00000030/commit.json"), "404"),
    "index flipped": (lambda r: r.key.endswith("index.json"), "flipped bit"),
    "folder listed empty": (lambda r: r.kind == "LIST" and "step-00000030" in r.key, "stale list"),
    "checkpoints listed empty": (lambda r: r.kind == "LIST" and r.key.endswith("checkpoints/"), "stale list"),
    "error document instead of a listing": (
        lambda r: r.kind == "LIST" and r.key.endswith("checkpoints/"),
        "200 with an error document",
    ),
    "marks listed empty": (lambda r: r.kind == "LIST" and r.key.endswith("fence/"), "stale list"),
    "latest.json not there": (lambda r: r.key.endswith("latest.json"), "404"),
    "latest.json flipped": (lambda r: r.key.endswith("latest.json"), "flipped bit"),
    "answer to the mark lost": (lambda r: r.kind == "conditional PUT", "lost answer"),
    "conflict on the mark": (lambda r: r.kind == "conditional PUT", "409"),
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("chosen", SINGLE.values(), ids=SINGLE)
def test_one_wrong_answer_costs_no_checkpoint(whole, spoilt, proxy, prefix, chosen, size):
    before = {item.uri for item in whole.list(f"{prefix}/checkpoints")}
    proxy.weather = once(*chosen)
    results, states = load(spoilt, prefix, claim(spoilt, prefix), size, seed=30, generation=2, saved_step=30)
    assert sum(proxy.suffered.values()) > 0
    assert [result.manifest.step for result in results] == [30] * size
    assert all(state.is_whole() for state in states)
    assert {item.uri for item in whole.list(f"{prefix}/checkpoints")} == before
    assert whole.list(f"{prefix}/fence")[0].uri.endswith("g000002.json")


@pytest.mark.parametrize("fault", ["flipped bit", "404"])
def test_a_machine_that_reads_everything_wrong_loses_nothing(whole, spoilt, proxy, prefix, fault):
    """Alone, then beside a whole one; a whole one alone then goes on at the newest."""
    proxy.weather = lambda asked: fault if asked.kind == "ranged GET" else None
    with pytest.raises(DamagedCheckpointError, match="no other machine has read the same"):
        load(spoilt, prefix, [10, 20, 30], 1, seed=30, generation=2, nodes=["bad"])
    with pytest.raises(DamagedCheckpointError, match=r"rename .*step-00000030/commit\.json to refused\.json"):
        load([spoilt, whole], prefix, [10, 20, 30], 2, seed=30, generation=3, nodes=["bad", "good"])
    assert stored_steps(whole, prefix).complete == [10, 20, 30]
    (result,), _ = load(whole, prefix, claim(whole, prefix, 4), 1, seed=30, generation=4, nodes=["good"])
    assert (result.manifest.step, result.skipped) == (30, [])


def test_two_generations_on_two_machines_agree_on_damage_that_is_stored(whole, prefix):
    (file,) = [item.uri for item in whole.list(f"{prefix}/checkpoints/step-00000030") if "00000-of" in item.uri]
    data = bytearray(whole.get(file))
    data[-1] ^= 1
    whole.put(file, bytes(data))
    for generation in (2, 3):
        with pytest.raises(DamagedCheckpointError):
            load(whole, prefix, [10, 20, 30], 1, seed=20, generation=generation, nodes=["one"])
    (result,), states = load(whole, prefix, [10, 20, 30], 1, seed=20, generation=4, nodes=["two"], saved_step=30)
    assert result.manifest.step == 20
    assert states[0].is_whole()
    assert "and the same by node one" in result.skipped[0]
    assert find_steps(whole, prefix, 30).refused == [30]


@pytest.mark.parametrize("fault", ["stale list", "200 with an error document"])
@pytest.mark.parametrize("saved_step", [0, 30])
def test_listings_that_are_always_empty_hide_no_checkpoint(spoilt, proxy, prefix, fault, saved_step):
    proxy.weather = lambda asked: fault if asked.kind == "LIST" and "checkpoints" in asked.key else None
    assert find_steps(spoilt, prefix, saved_step).complete == [30]


def test_what_was_saved_and_is_nowhere_is_the_storages_fault(whole, prefix):
    with pytest.raises(StorageUnavailable, match=r"step 40 was saved, and the newest .* is of step 30"):
        find_steps(whole, prefix, 40)


def test_a_checkpoint_that_was_deleted_since_it_was_listed_is_not_damaged(whole, prefix):
    """Retention of another generation, which has saved a newer one meanwhile."""
    writers = make_writers(whole, prefix, 1, policy=CheckpointPolicy(keep_last=1))
    listed = [10, 20, 30]
    save(writers, 40, since=30)
    assert stored_steps(whole, prefix).complete == [40]
    results, states = load(whole, prefix, listed, 2, seed=40, generation=1)
    assert [result.manifest.step for result in results] == [40, 40]
    assert all(state.is_whole() for state in states)


SAVING = {
    "answer to commit.json lost": (lambda r: r.kind == "conditional PUT", "lost answer"),
    "conflict on commit.json": (lambda r: r.kind == "conditional PUT", "409"),
    "commit.json refused as there": (lambda r: r.kind == "conditional PUT", "412"),
    "reset on commit.json": (lambda r: r.kind == "conditional PUT", "reset"),
    "access denied on commit.json": (lambda r: r.kind == "conditional PUT", "403"),
    "reset on a delete": (lambda r: r.kind == "DELETE", "reset"),
    "access denied on a delete": (lambda r: r.kind == "DELETE", "403"),
    "a part cut": (lambda r: r.kind == "GET" and "/parts/" in r.key, "cut"),
    "a part flipped": (lambda r: r.kind == "GET" and "/parts/" in r.key, "flipped bit"),
    "a part not there": (lambda r: r.kind == "GET" and "/parts/" in r.key, "404"),
    "an old segment flipped": (lambda r: r.kind == "GET" and "/order/" in r.key, "flipped bit"),
    "an old segment not there": (lambda r: r.kind == "GET" and "/order/" in r.key, "404"),
    "folder listed empty": (lambda r: r.kind == "LIST" and r.key.endswith("step-00000040/"), "stale list"),
    "marks listed empty": (lambda r: r.kind == "LIST" and r.key.endswith("fence/"), "stale list"),
    "commit.json read flipped": (lambda r: r.kind == "GET" and r.key.endswith("commit.json"), "flipped bit"),
    "checkpoints listed empty": (lambda r: r.kind == "LIST" and r.key.endswith("checkpoints/"), "stale list"),
}


@pytest.mark.parametrize("chosen", SAVING.values(), ids=SAVING)
def test_one_wrong_answer_ends_no_saving(whole, spoilt, proxy, prefix, chosen):
    (result, _), _ = load(whole, prefix, [10, 20, 30], 2, seed=30, generation=2)
    writers = make_writers(spoilt, prefix, 2, generation=2, policy=SOME, resumed=result.manifest)
    met = dict(proxy.suffered)
    proxy.weather = once(*chosen)
    save(writers, 40, since=30)
    save(writers, 50, since=40)
    assert dict(proxy.suffered) != met
    proxy.weather = lambda _: None
    assert stored_steps(whole, prefix).complete[-2:] == [40, 50]
    results, states = load(whole, prefix, [40, 50], 2, seed=50, generation=2)
    assert all(state.is_whole() for state in states)
    assert results[0].manifest.order_sha256


@pytest.mark.parametrize("seed", range(12))
def test_a_random_fault_at_a_random_request_loses_nothing(whole, spoilt, proxy, prefix, seed):
    """Never a checkpoint lost, never resumed below what was saved: whole, or told as trouble."""
    draw = random.Random(seed)
    fault = draw.choice(["reset", "cut", "404", "409", "500", "flipped bit", "stale list", "lost answer",
                         "200 with an error document"])  # fmt: skip
    turn, size = draw.randrange(12), draw.choice([1, 2])
    left = [turn]

    def weather(_: StorageRequest) -> str | None:
        left[0] -= 1
        return fault if left[0] == -1 else None

    proxy.weather = weather
    told: ExitCode | None = None
    try:
        results, states = load(spoilt, prefix, claim(spoilt, prefix), size, seed=30, generation=2, saved_step=30)
    except TrainerError as error:
        told = error.exit_code
    else:
        assert [result.manifest.step for result in results] == [30] * size
        assert all(state.is_whole() for state in states)
    assert told in (None, ExitCode.STORAGE, ExitCode.CHECKPOINT)
    proxy.weather = lambda _: None
    assert stored_steps(whole, prefix).complete == [10, 20, 30]
