"""Work that is cut into independent units, shared by the ranks of a world and safe to kill at any time.

A unit's result is one small object that is written last, after everything it refers to. Its name is derived from the
unit's input, so a restarted world of any size skips what is there and does the rest. Ranks do not talk to each other:
they meet in the object store, and rank 0 reports for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.errors import DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext
from videotrain_trainer.worker.stage_reporter import Work

POLL_SECONDS = 0.5
SHARE_SECONDS = 5.0
"""How often other ranks tell of a unit that takes long, so that rank 0's step counter keeps moving."""


@dataclass(frozen=True)
class Unit:
    """One piece of work."""

    name: str
    """Hash of its input; names its result."""
    weight: int
    """Steps that it counts for in progress."""


class Interrupted(Exception):
    """The unit cannot be finished within the grace period; it will be done again."""


Tick = Callable[[int], None]
"""Called by a unit's work with the steps of this unit that are done."""


class UnitRun:
    """Does the units of one stage.

    Args:
        context: of the stage.
        store: object store.
        units: all units of the stage, the same list on every rank.
    """

    def __init__(self, context: StageContext, store: ObjectStore, units: Sequence[Unit]) -> None:
        self._context = context
        self._store = store
        self._units = units
        self._prefix = context.config.paths.output
        self._total = sum(unit.weight for unit in units)
        self._done = self._committed()
        self._own_part = 0
        self._asked_at: float | None = None
        self._shared_at = time.monotonic()
        self._reporter = _Reporter(context, self._prefix, self._weight(self._done), self._total)

    def run(self, work: Callable[[Unit, Tick], dict[str, Any]]) -> bool:
        """Do this rank's share, then wait for the others.

        Args:
            work: does one unit and returns its result, JSON values only; everything else it made is stored already.

        Returns:
            Whether all units of the world are done; False if the world is asked to leave.
        """
        world = self._context.world
        for unit in self._units[world.rank :: world.size]:
            if unit.name in self._done:
                continue
            if self._context.drain.requested():
                return False
            try:
                result = work(unit, self._tick)
            except Interrupted:
                return False
            self._store.put(self._result_uri(unit.name), sealed_json(result))
            self._own_part = 0
            self._done.add(unit.name)
            self._report(force=True)
        return self._wait(self._all_committed)

    def results(self) -> list[dict[str, Any]]:
        """Results of all units, in the units' order. That it gets on is recorded, since no step is made meanwhile.

        Raises:
            DataError: one is missing or damaged.
        """
        found: list[dict[str, Any]] = []
        with ThreadPoolExecutor(8) as pool:
            for result in pool.map(self._result, [unit.name for unit in self._units]):
                found.append(result)
                if len(found) == len(self._units) or time.monotonic() - self._shared_at >= SHARE_SECONDS:
                    self._shared_at = time.monotonic()
                    self._context.reporter.phase("merge", len(found), len(self._units))
        return found

    def wait_for(self, uri: str) -> bool:
        """Wait until rank 0 has written the stage's last object; False if the world is asked to leave."""
        return self._wait(lambda: self._store.exists(uri))

    def _tick(self, part: int) -> None:
        self._own_part = part
        if self._context.drain.requested():
            self._asked_at = self._asked_at or time.monotonic()
            if time.monotonic() - self._asked_at > self._context.config.grace_seconds / 2:
                raise Interrupted
        if time.monotonic() - self._shared_at >= SHARE_SECONDS:
            self._report(force=False)

    def _wait(self, ready: Callable[[], bool]) -> bool:
        for turn in count():
            if ready():
                return True
            if self._context.drain.requested():
                return False
            # The first looks are quick ones: most waits are for units that end at about the same time.
            time.sleep(min(POLL_SECONDS, 0.05 * 2 ** min(turn, 8)))
        raise AssertionError("unreachable")

    def _all_committed(self) -> bool:
        self._done = self._committed()
        self._report(force=False)
        return len(self._done) == len(self._units)

    def _report(self, force: bool) -> None:
        """Rank 0 writes records; the others leave the state of a long unit where rank 0 finds it."""
        part, now = self._own_part, time.monotonic()
        due = now - self._shared_at >= SHARE_SECONDS
        if self._context.world.rank == 0:
            if force or due:
                self._done |= self._committed()
                self._shared_at = now
            self._reporter.write(self._weight(self._done), part + (self._parts_of_others() if due else 0))
        elif due:
            self._shared_at = now
            self._store.put(self._part_uri(self._context.world.rank), sealed_json({"steps": part}))

    def _parts_of_others(self) -> int:
        found = self._store.list(f"{self._prefix}/progress/g{self._context.generation:06d}")
        return sum(int(read_checked(self._store, info.uri, unsealed_json)["steps"]) for info in found)

    def _committed(self) -> set[str]:
        names = {unit.name for unit in self._units}
        found = self._store.list(f"{self._prefix}/units")
        return names & {info.uri.rsplit("/", 1)[1].removesuffix(".json") for info in found}

    def _weight(self, names: set[str]) -> int:
        return sum(unit.weight for unit in self._units if unit.name in names)

    def _result(self, name: str) -> dict[str, Any]:
        uri = self._result_uri(name)
        try:
            return read_checked(self._store, uri, unsealed_json, remedy="delete it to have the unit redone")
        except ObjectMissing as error:
            raise DataError(f"{uri}: missing result of a unit; run the stage again to have it redone") from error

    def _result_uri(self, name: str) -> str:
        return f"{self._prefix}/units/{name}.json"

    def _part_uri(self, rank: int) -> str:
        return f"{self._prefix}/progress/g{self._context.generation:06d}/{rank}"


class _Reporter:
    """Turns progress into records: a step for work that is done, a checkpoint for work that a restart keeps."""

    def __init__(self, context: StageContext, prefix: str, resumed: int, total: int) -> None:
        self._records = context.reporter
        self._prefix = prefix
        self._step = self._kept = resumed
        self._at = datetime.now(UTC)
        if context.world.rank == 0:
            self._records.started(context.world.size, resumed, total)

    def write(self, kept: int, parts: int) -> None:
        """Tell of `kept` steps in finished units and `parts` steps in units that are being done."""
        now = datetime.now(UTC)
        if kept + parts > self._step:
            self._records.step(kept + parts, self._at, now, Work(samples=kept + parts - self._step))
            self._step, self._at = kept + parts, now
        if kept > self._kept:
            self._kept = kept
            self._records.checkpoint(kept, now, now, f"{self._prefix}/units")
