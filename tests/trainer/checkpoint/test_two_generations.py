"""Two generations whose requests to the object store come in any order, and fail: nobody destroys what the other
completed, and nobody goes on below what the operator knows to be saved.

Hypothesis orders the requests one by one, so that a generation may be past any check when the other one does anything.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from
from support.at_length import cases
from support.checkpoint_worlds import load, make_writers, save
from support.storage_history import OUTCOMES, Crash, History, Outcome, Process, record

from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_trainer.checkpoint.catalog import StoredSteps, find_steps, give_up, stored_steps
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.errors import Fenced, StorageUnavailable

SHAPES = {"weight": (4, 2)}
EVERY = 10
WAIT = 120.0
"""Seconds after which a thread that neither ends nor asks for anything is stuck, however busy the machine is."""


class Life:
    """One generation in a thread of its own, whose every request waits for its turn."""

    def __init__(self, number: int, store: Process, work: Callable[[Process, int], None]) -> None:
        self.number, self.store = number, store
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._waiting = self._granted = 0
        self.over = False
        store.turn = self._turn
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self.settle()

    def go(self, requests: int) -> None:
        """Let so many requests happen, one after the other."""
        for _ in range(requests):
            with self._changed:
                if self.over:
                    return
                self._waiting -= 1
                self._granted += 1
                self._changed.notify_all()
            self.settle()

    def settle(self) -> None:
        """Wait until the thread asks for its next request, or has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.over or (self._waiting and not self._granted), WAIT), self.number

    def kill(self) -> None:
        """Let it run into its death."""
        self.store.dead = True
        while not self.over:
            self.go(1)
        self._thread.join(WAIT)

    def _turn(self) -> None:
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            # As long as it takes: while another generation has its turns, this one stands still.
            self._changed.wait_for(lambda: self._granted)
            self._granted -= 1
            self._changed.notify_all()

    def _run(self, work: Callable[[Process, int], None]) -> None:
        try:
            work(self.store, self.number)
        except (Exception, Crash) as error:
            self.error = error
        with self._changed:
            self.over = True
            self._changed.notify_all()


class Generations(RuleBasedStateMachine):
    """A stage whose generations overlap as badly as they can."""

    keep_last = 2

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr("videotrain_trainer.storage.time.sleep", lambda _: None)
        self._folder = Path(tempfile.mkdtemp())
        self.prefix = f"file://{self._folder}/stage"
        self.history = record(self._patch, self.keep_last)
        self.lives: list[Life] = []
        self.resumed: dict[int, int] = {}
        self.saved_step = 0
        """The newest step of which a generation could tell that it is saved, as a roster would carry it."""

    def teardown(self) -> None:
        for life in self.lives:
            life.kill()
        # Whatever happened: a generation that nobody disturbs goes on from the newest complete checkpoint.
        best = max(self.history.committed(), default=0)
        last = Process("last", self.history)
        self._work(last, len(self.lives) + 1)
        try:
            assert self.resumed[len(self.lives) + 1] == best, self.history.tail()
            assert self.history.problems() == [], self.history.tail()
        finally:
            self._patch.undo()
            shutil.rmtree(self._folder)

    @precondition(lambda self: sum(not life.over for life in self.lives) < 2)
    @rule()
    def begin(self) -> None:
        """A further generation, while the one before may still be at work."""
        number = len(self.lives) + 1
        self.lives.append(Life(number, Process(f"g{number}", self.history), self._work))

    @precondition(lambda self: any(not life.over for life in self.lives))
    @rule(which=integers(0, 1), requests=integers(1, 40))
    def go(self, which: int, requests: int) -> None:
        """Some requests of one of those that are at work."""
        alive = [life for life in self.lives if not life.over]
        alive[which % len(alive)].go(requests)

    @precondition(lambda self: any(not life.over for life in self.lives))
    @rule(which=integers(0, 1))
    def kill(self, which: int) -> None:
        """One dies between two requests."""
        alive = [life for life in self.lives if not life.over]
        alive[which % len(alive)].kill()

    @precondition(lambda self: any(not life.over for life in self.lives))
    @rule(which=integers(0, 1), requests=integers(0, 40), outcome=sampled_from(OUTCOMES))
    def disturb(self, which: int, requests: int, outcome: Outcome) -> None:
        """Something will happen at a request that is still to come."""
        alive = [life for life in self.lives if not life.over]
        store = alive[which % len(alive)].store
        store.plan[store.calls + requests] = outcome

    @invariant()
    def the_newest_does_not_fail(self) -> None:
        """Whoever was overtaken may be told to go, or find its files tidied away. The newest ends at most for what its
        store answered.
        """
        for life in self.lives[-1:]:
            expected = [StorageUnavailable] if life.store.met else []
            assert life.error is None or isinstance(life.error, (Crash, *expected)), (life.number, life.error)

    def _work(self, store: Process, number: int) -> None:
        known = self.saved_step
        Fence(store, self.prefix, number).raise_()
        complete = find_steps(store, self.prefix, known).complete
        (loaded,), _ = load(store, self.prefix, complete, 1, 0, shapes=SHAPES, saved_step=known)
        resumed = self.resumed[number] = loaded.manifest.step if loaded.manifest else 0
        assert resumed >= known, f"{known} was saved, resumed at {resumed}"
        policy = CheckpointPolicy(keep_last=self.keep_last)
        writers = make_writers(store, self.prefix, 1, number, policy, loaded.manifest)
        try:
            for step in range(resumed + EVERY, resumed + 4 * EVERY, EVERY):
                save(writers, step, since=step - EVERY, shapes=SHAPES)
                self.saved_step = max(self.saved_step, step)
        finally:
            writers[0].close()


class Held(Process):
    """Stands still before a request for a commit manifest.

    Args:
        name: for the history.
        history: that of all processes.
        kind: of the request: create, or the get that looks whether it is stored.
    """

    def __init__(self, name: str, history: History, kind: str) -> None:
        super().__init__(name, history)
        self.reached, self.freed, self._kind = threading.Event(), threading.Event(), kind

    def request(self, kind, key, data, send):
        """As of any process, but for that."""
        if kind == self._kind and key.endswith("commit.json"):
            self.reached.set()
            assert self.freed.wait(WAIT)
        return super().request(kind, key, data, send)


@pytest.mark.parametrize("before", ["create", "get"])
@pytest.mark.parametrize("again", [20, 30], ids=["saves the same step", "saves a later one"])
def test_who_is_overtaken_as_it_completes_a_step_completes_nothing_of_which_files_are_gone(
    monkeypatch, tmp_path, again, before
):
    history, prefix = record(monkeypatch, 1), f"file://{tmp_path}/stage"
    old, new, policy = Held("old", history, before), Process("new", history), CheckpointPolicy(keep_last=1)
    with ThreadPoolExecutor(1) as thread:
        overtaken = thread.submit(save, make_writers(old, prefix, 1, 1, policy), 20, shapes=SHAPES)
        assert old.reached.wait(WAIT)
        newer = make_writers(new, prefix, 1, 2, policy)
        save(newer, again, shapes=SHAPES)
        save(newer, 40, since=again, shapes=SHAPES)
        old.freed.set()
        with pytest.raises(Fenced, match="generation 2 has begun"):
            overtaken.result()
    assert list(history.committed()) == stored_steps(new, prefix).complete == [40]
    assert history.problems() == [], history.tail()


def test_a_step_that_was_given_up_can_be_saved_again(monkeypatch, tmp_path):
    history, prefix = record(monkeypatch, 1), f"file://{tmp_path}/stage"
    store = Process("new", history)
    assert give_up(store, prefix, 20)
    assert stored_steps(store, prefix) == StoredSteps([], [], [])
    save(make_writers(store, prefix, 2, 1), 20, shapes=SHAPES)
    assert not give_up(store, prefix, 20)
    assert list(history.committed()) == [20]
    assert history.problems() == [], history.tail()


class GenerationsThatKeepOne(Generations):
    """With a single checkpoint kept, retention is at its most dangerous."""

    keep_last = 1


SETTINGS = settings(
    max_examples=cases(20, 60),
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestGenerations = Generations.TestCase
TestGenerations.settings = SETTINGS
TestGenerationsThatKeepOne = GenerationsThatKeepOne.TestCase
TestGenerationsThatKeepOne.settings = SETTINGS


HISTORIES = cases(20, 60)
"""Of each kind. Hypothesis finds odd orders of few requests; these are long, and mostly work."""
ACTIONS = ("go",) * 12 + ("begin",) * 2 + ("disturb",) * 5 + ("kill",)


@pytest.mark.parametrize("kind", [Generations, GenerationsThatKeepOne])
def test_long_random_histories_lose_nothing(kind):
    for seed in range(HISTORIES):
        chance, generations = random.Random(seed), kind()
        try:
            for _ in range(40):
                act(generations, chance)
                generations.the_newest_does_not_fail()
        except BaseException as error:
            error.add_note(f"history {seed}:\n{generations.history.tail()}")
            raise
        finally:
            generations.teardown()


def act(generations: Generations, chance: random.Random) -> None:
    """One action of those that are possible."""
    alive = sum(not life.over for life in generations.lives)
    action = chance.choice(ACTIONS) if alive else "begin"
    which = chance.randrange(2)
    if action == "begin" and alive < 2:
        generations.begin()
        store = generations.lives[-1].store
        # Most of a life is saving, but most of what can be lost is lost as it begins.
        store.plan[chance.randint(0, 12)] = chance.choice(OUTCOMES)
    elif action == "go":
        generations.go(which=which, requests=chance.randint(1, 30))
    elif action == "disturb":
        generations.disturb(which=which, requests=chance.randint(0, 40), outcome=chance.choice(OUTCOMES))
    elif action == "kill":
        generations.kill(which=which)
