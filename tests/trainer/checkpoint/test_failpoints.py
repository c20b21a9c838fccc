"""Every request of the checkpoint path fails in every way, one at a time, and what the store went through is checked.

The path: a generation raises its fence, loads what the one before left, and saves two checkpoints with retention. At
each of its requests the process dies before or after, or is told of an error that was none, or was one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest
from support.checkpoint_worlds import load, make_writers, save
from support.storage_history import OUTCOMES, Crash, History, Outcome, Process, record

from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_trainer.checkpoint.catalog import stored_steps
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.errors import StorageUnavailable

SHAPES = {"weight": (24, 8), "scale": ()}
KEEP_LAST = 2
EVERY = 10


@dataclass
class Path:
    """The checkpoint path of one stage in a folder."""

    prefix: str
    history: History

    def generation(self, number: int) -> Process:
        """A process that has touched nothing yet."""
        return Process(f"g{number}", self.history)

    def start(self, store: Process, number: int) -> tuple[int, list]:
        """Fence, look and load: the step that was found, and the writers that go on from it."""
        Fence(store, self.prefix, number).raise_()
        complete = stored_steps(store, self.prefix).complete
        newest = complete[-1] if complete else 0
        (loaded,), (state,) = load(store, self.prefix, complete, 1, newest, shapes=SHAPES)
        resumed = loaded.manifest.step if loaded.manifest else 0
        assert resumed == newest, f"{newest} is complete, resumed at {resumed}: {loaded.skipped}"
        assert resumed == 0 or state.is_whole()
        policy = CheckpointPolicy(keep_last=KEEP_LAST)
        return resumed, make_writers(store, self.prefix, 1, number, policy, loaded.manifest)

    def run(self, store: Process, number: int, saves: int) -> int:
        """A whole life; the step of its last checkpoint."""
        resumed, writers = self.start(store, number)
        try:
            for step in range(resumed + EVERY, resumed + (saves + 1) * EVERY, EVERY):
                save(writers, step, since=step - EVERY, shapes=SHAPES)
        finally:
            writers[0].close()
        return resumed + saves * EVERY


def expected_order(step: int) -> str:
    return hashlib.sha256("".join(f"{n} x{n}\n" for n in range(1, step + 1)).encode()).hexdigest()


@pytest.fixture
def path_at(tmp_path, monkeypatch):
    """Paths of which a first generation has saved two checkpoints, each in a folder of its own."""
    monkeypatch.setattr("videotrain_trainer.storage.time.sleep", lambda _: None)

    def make(number):
        path = Path(f"file://{tmp_path}/{number}/stage", record(monkeypatch, KEEP_LAST))
        path.run(path.generation(1), 1, saves=2)
        return path

    return make


def newest(path: Path) -> int:
    return max(path.history.committed())


def requests_of(path: Path) -> list[str]:
    """The requests of an undisturbed second generation."""
    before = len(path.history.events)
    path.run(path.generation(2), 2, saves=2)
    return [str(event) for event in path.history.events[before:]]


def check_all(path: Path, before: int) -> None:
    """A further generation finds the newest checkpoint whole and saves the next one; no request broke a rule."""
    found = newest(path)
    assert found >= before, path.history.tail()
    last = path.run(path.generation(3), 3, saves=1)
    assert last == found + EVERY
    assert path.history.problems() == [], path.history.tail()
    assert path.history.committed()[last].order_sha256 == expected_order(last)


def disturbed(path: Path, call: int, outcome: Outcome) -> Process:
    """The second generation, with one thing planned at one of its calls."""
    store = path.generation(2)
    store.plan = {call: outcome}
    return store


def failure_of(path: Path, store: Process) -> BaseException | None:
    """What ended the second generation, if anything did."""
    try:
        path.run(store, 2, saves=2)
    except (Crash, StorageUnavailable) as error:
        return error
    return None


def test_an_undisturbed_path_breaks_no_rule_and_takes_as_many_requests_as_are_tried(path_at):
    path = path_at(0)
    requests = requests_of(path)
    assert {request.split()[1] for request in requests} >= {"list", "create", "put", "get", "get_range", "delete"}
    check_all(path, 40)
    assert len(requests) <= MOST_CALLS


MOST_CALLS = 75
"""Calls that are tried; the test above fails when the path has more."""


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_nothing_that_is_complete_is_lost_whatever_request_fails(path_at, outcome):
    reached = 0
    for call in range(MOST_CALLS):
        path = path_at(call)
        store = disturbed(path, call, outcome)
        error = failure_of(path, store)
        if not store.met:
            assert error is None
            break
        # What fails once is done again. A rank's data are not read back, so the world ends when they are not stored.
        data = store.met[0].startswith("put ") and store.met[0].endswith(".safetensors")
        ends = outcome.startswith("crash") or (outcome == "not stored" and data)
        assert (error is not None) == ends, f"call {call}, {outcome} of {store.met[0]}: {error}"
        reached += 1
        check_all(path, 20)
    assert reached > 25
