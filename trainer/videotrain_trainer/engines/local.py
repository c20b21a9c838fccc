"""The local engine: every process of the world does units in threads, as many as its share of the pod has room for.

What needs a process of its own, as the decoding of untrusted files does, is started by the threads' workers. Ranks
claim ranges in the object store, so a fast one does what a slow one has not begun.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from videotrain_trainer.engines.board import Board, Listing, OpenRange, wait_until
from videotrain_trainer.engines.claims import Claim, Claims
from videotrain_trainer.engines.interface import (
    SHARE_SECONDS,
    Interrupted,
    Member,
    Tick,
    Unit,
    UnitRange,
    Used,
    Work,
    Worker,
)
from videotrain_trainer.engines.progress import Phase, UnitReporter
from videotrain_trainer.storage import ObjectStore

POLL_SECONDS = 0.5
"""Longest pause of worlds of up to 64 between two looks for work that others found or left."""


@dataclass
class _Held:
    """A range that this process does, and the steps of it that this process has done."""

    claim: Claim
    range: OpenRange
    done: int = 0
    kept: int = 0


@dataclass
class _Count:
    """Steps of this process in this generation."""

    done: int = 0
    kept: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    """Of units that are being done."""
    used: Counter[str] = field(default_factory=Counter)
    """By workers; as Used."""


class LocalRun:
    """One process's part of a stage.

    Args:
        member: this process.
        store: object store.
        work: does units.
        ranges: finds them; used by rank 0 alone.
        workers: that this process has.
        board: keeps the results; by default those of a range together.
        phase: the units are no steps of the stage but this phase of it.
    """

    def __init__(
        self,
        member: Member,
        store: ObjectStore,
        work: Work,
        ranges: Iterator[UnitRange],
        workers: int,
        board: Board | None = None,
        phase: Phase | None = None,
    ) -> None:
        self._member, self._work, self._workers = member, work, workers
        self.board = board or Board(store, member)
        self._claims = Claims(store, self.board.folder, member.rank, member.size, 0)
        self._listing = Listing(self.board, ranges, self.board.publish) if member.rank == 0 else None
        self._reporter = UnitReporter(member, self._listing, phase) if self._listing is not None else None
        self._next = member.rank
        self._all_seen = False
        self._todo: queue.SimpleQueue[tuple[_Held, Unit] | None] = queue.SimpleQueue()
        self._open: dict[int, _Held] = {}
        self._count, self._others = _Count(), _Count()
        self._opened: list[Worker] = []
        self._lock = threading.Lock()
        self._woken, self._leaving = threading.Event(), threading.Event()
        self._trouble: BaseException | None = None
        self._asked_at: float | None = None
        self._shared_at = time.monotonic()
        self._beat = 0
        self._ended = False

    def run(self) -> bool:
        """Do units until all of the world are done.

        Returns:
            Whether they are; False if the world is asked to leave, and what is done is stored.
        """
        threads = [threading.Thread(target=self._serve, args=(number,), daemon=True) for number in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            finished = self._drive()
        finally:
            self._leaving.set()
            for _ in range(self._workers * self._work.units_at_once):
                self._todo.put(None)
            for thread in threads:
                thread.join()
        if self._trouble is not None:
            raise self._trouble
        self._ended = True
        self._share()
        if not finished:
            self._report(ended=True)
        elif self._reporter is not None:
            # Others tell of their last units in their own time. What they have used nothing else tells.
            if self._count.used:
                until = time.monotonic() + SHARE_SECONDS
                wait_until(self._others_have_ended, lambda: time.monotonic() > until, POLL_SECONDS)
            self._reporter.finished(self._count.used + self._others.used)
        return finished

    def names(self) -> list[str]:
        """Rank 0's: of all ranges, in their order."""
        assert self._listing is not None
        return self._listing.found.names

    def _drive(self) -> bool:
        # So that a world of thousands does not ask an object store thousands of times a second.
        pause, longest = 0.05, POLL_SECONDS * max(1.0, self._member.size / 64)
        while self._trouble is None:
            self._woken.clear()
            if self._member.asked_to_leave():
                return False
            claimed = self._lacks_units() and self._claim()
            if time.monotonic() - self._shared_at >= SHARE_SECONDS:
                self._share()
            self._report()
            if claimed:
                continue
            if not self._open and self._all_seen and self._claims.all_finished():
                return True
            pause = 0.05 if self._woken.wait(pause) else min(2 * pause, longest)
        return False

    def _lacks_units(self) -> bool:
        """Where a worker does several units, the next one is begun early enough to be claimed when a thread is free."""
        if self._work.units_at_once > 1:
            return self._todo.empty() and len(self._open) < self._workers * self._work.units_at_once
        return self._todo.qsize() < self._workers

    def _claim(self) -> bool:
        """Take a range that nobody does, if there is one."""
        self._look_for_ranges()
        claim = self._claims.take()
        if claim is None:
            return False
        units = self.board.published(claim.number)
        assert units is not None, "what is claimed was seen"
        held = _Held(claim, self.board.open(claim.number, units))
        with self._lock:
            self._open[claim.number] = held
        missing = [unit for unit in units.units if unit.name not in held.range.results]
        for unit in missing:
            self._todo.put((held, unit))
        if not missing:
            self._finish(held)
        return True

    def _look_for_ranges(self) -> None:
        """Ranges are published in their order, so this rank's next one tells of all before it."""
        if self._all_seen:
            return
        end = self.board.published_end()
        if end is not None:
            self._all_seen = True
            self._claims.extend(end)
        elif self.board.published(self._next) is not None:
            self._claims.extend(self._next + 1)
            self._next += self._member.size

    def _serve(self, number: int) -> None:
        """One worker, in a thread for each of the units that it does at the same time."""
        scratch = self._member.scratch / f"worker-{number}"
        try:
            worker = self._work.open(scratch)
            self._opened.append(worker)
            try:
                threads = [
                    threading.Thread(target=self._do_units, args=(worker,), daemon=True)
                    for _ in range(self._work.units_at_once)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                worker.close()
        except BaseException as error:
            self._trouble = self._trouble or error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            self._woken.set()

    def _do_units(self, worker: Worker) -> None:
        """Units until there are none, or the process leaves."""
        try:
            while (item := self._todo.get()) is not None and not self._leaving.is_set():
                held, unit = item
                self._finished(held, unit, worker.do(unit, self._tick_of(unit)))
        except Interrupted:
            pass  # its unit is done by another generation
        except BaseException as error:
            self._trouble = self._trouble or error
        finally:
            self._woken.set()

    def _tick_of(self, unit: Unit) -> Tick:
        def tick(part: int) -> None:
            self._count.parts[unit.name] = min(part, unit.weight - 1)  # its last step is that it has a result
            if self._leaving.is_set() or self._member.asked_to_leave():
                self._asked_at = self._asked_at or time.monotonic()
                if time.monotonic() - self._asked_at > self._member.grace_seconds / 2:
                    raise Interrupted

        return tick

    def _finished(self, held: _Held, unit: Unit, result: dict[str, Any]) -> None:
        with self._lock:
            held.range.results[unit.name] = result
            held.done += unit.weight
            self._count.done += unit.weight
            self._count.parts.pop(unit.name, None)
            whole = held.range.done
        if whole:
            self._finish(held)
        self._woken.set()

    def _finish(self, held: _Held) -> None:
        first = self.board.finish(held.range)
        self._claims.finish(held.claim)
        with self._lock:
            if self._open.get(held.claim.number) is held:  # or it was taken over, and back
                del self._open[held.claim.number]
            self._count.kept += (held.done if first else 0) - held.kept
            self._count.done -= 0 if first else held.done

    def _share(self) -> None:
        """Store what is done of open ranges, and tell of it; rank 0 hears what the others tell."""
        self._shared_at = time.monotonic()
        with self._lock:
            held_ranges = [(held, held.done, dict(held.range.results)) for held in self._open.values()]
        for held, done, results in held_ranges:
            self.board.keep(held.range, results)
            with self._lock:
                if held.claim.number in self._open:
                    self._count.kept += done - held.kept
                    held.kept = done
        self._beat += 1
        parts = sum(list(self._count.parts.values()))
        sign = {"beat": self._beat, "kept": self._count.kept, "done": self._count.done, "parts": parts}
        self._count.used = sum((Counter(worker.used()) for worker in self._opened), Counter[str]())
        self._claims.show_life(sign | {"ended": int(self._ended)} | self._count.used)
        if self._listing is not None:
            self._others_have_ended()

    def _others_have_ended(self) -> bool:
        """Hear what the other ranks have told; whether that was their last."""
        signs = [sign for sign in self._claims.signs() if sign["rank"] != 0]
        done, kept, parts = (sum(sign[name] for sign in signs) for name in ("done", "kept", "parts"))
        used = Counter({name: sum(sign.get(name, 0) for sign in signs) for name in Used.__annotations__})
        self._others = _Count(done, kept, {"": parts}, used)
        return sum(sign.get("ended", 0) for sign in signs) == self._member.size - 1

    def _report(self, ended: bool = False) -> None:
        if self._reporter is None:
            return
        mine, others = self._count, self._others
        kept, done, used = mine.kept + others.kept, mine.done + others.done, mine.used + others.used
        parts = sum(list(mine.parts.values())) + sum(others.parts.values())
        self._reporter.write(kept, done - kept + parts, ended, used)
