"""Every request of the checkpoint path fails in every way, one at a time, and what the store went through is checked.

The path: a generation raises its fence, loads what the one before left, and saves two checkpoints with retention. Or
the newest checkpoint is damaged where it lies, and two machines read it, leave their marks and withdraw it. At each
request a process dies before or after, or is told of an error that was none, or was one, or of what is not so.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass

import pytest
from support.checkpoint_worlds import load, make_writers, save
from support.storage_history import OUTCOMES, Crash, Event, History, Outcome, Process, record

from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_trainer.checkpoint.catalog import find_steps
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.errors import PeerLost, StorageUnavailable

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
        """Fence, look and load: the step that was found, and the writers from there on. The roster knows nothing."""
        Fence(store, self.prefix, number).raise_()
        newest = max(self.history.committed(), default=0)
        complete = find_steps(store, self.prefix, 0).complete
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

    def refuse(self, stores: list[Process], number: int) -> int | None:
        """Two machines load what there is; the step that they resume at."""
        Fence(stores[0], self.prefix, number).raise_()
        complete = find_steps(stores[0], self.prefix, 20).complete
        results, states = load(
            stores, self.prefix, complete, 2, 10, SHAPES, ("one", "two"), generation=number, saved_step=20
        )
        resumed = {result.manifest.step if result.manifest else None for result in results}
        assert len(resumed) == 1
        assert all(state.is_whole() for state in states)
        return resumed.pop()

    def damage(self, step: int) -> None:
        """Cut off the end of a stored file; its commit manifest stays."""
        (uri,) = [event.key for event in self.history.events if event.kind == "put" and f"-{step:08d}/" in event.key
                  and event.key.endswith(".safetensors")]  # fmt: skip
        os.truncate(f"/{uri}", 100)
        self.history.events.append(Event("disk", "damage", uri, bytes(100)))


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


ENDS = (Crash, StorageUnavailable, DamagedCheckpointError, PeerLost)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_is_damaged_is_refused_in_the_end_and_nothing_else_is_lost(path_at, outcome, which):
    """The other machine's requests go as they should."""
    reached = 0
    for call in range(MOST_CALLS):
        path = path_at(call)
        path.damage(20)
        stores = [Process(f"g2-{machine}", path.history) for machine in ("one", "two")]
        stores[which].plan = {call: outcome}
        with suppress(*ENDS):
            assert path.refuse(stores, 2) == 10
        if not stores[which].met:
            break
        reached += 1
        assert path.refuse([path.generation(3), path.generation(3)], 3) == 10
        assert find_steps(path.generation(4), path.prefix, 20).refused == [20]
        assert path.run(path.generation(4), 4, saves=1) == 20
        assert path.history.problems() == [], path.history.tail()
    assert reached > 5
