"""Work that is cut into independent units, shared by the ranks of a world and safe to kill at any time.

A unit's result is one table that is written last and once, after everything it refers to. Its name is derived from the
unit's input, so a restarted world of any size skips what is there and does the rest. Ranks do not talk to each other:
they claim ranges of units in the object store (`claims`), and rank 0 reports for all.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from typing import Any, TypeVar

from videotrain_trainer.checksums import read_checked, sealed_parquet, unsealed_parquet
from videotrain_trainer.errors import AlreadyExists, DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.claims import Claim, Claims
from videotrain_trainer.worker.stage_context import StageContext
from videotrain_trainer.worker.stage_reporter import StageReporter, Work

POLL_SECONDS = 5.0
"""Longest pause between two looks at what other ranks do."""
SHARE_SECONDS = 5.0
"""How often a rank tells how far it is, so that rank 0's step counter moves and its claims do not lapse."""
RANGES_PER_RANK = 2
"""A range holds 1 / (RANGES_PER_RANK * ranks) of the units that are left, and at least one."""
AHEAD = 2
"""Units that a rank that gets them ready holds at least, while there are so many."""
READERS = 32
"""Results that are read at the same time."""

Key = TypeVar("Key")
Found = TypeVar("Found")
log = logging.getLogger(__name__)


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
        units: all units of the stage, the same sequence on every rank; asked for by number, so it may compute them.
        merging: the units put together what others have left, so they are no steps and are told as a phase.
    """

    def __init__(
        self,
        context: StageContext,
        store: ObjectStore,
        units: Sequence[Unit],
        merging: bool = False,
    ) -> None:
        self._context, self._store, self._units = context, store, units
        world, prefix, name = context.world, context.config.paths.output, "parts" if merging else "units"
        self._folder = f"{prefix}/{name}"
        told = f"{prefix}/progress/g{context.generation:06d}/{name}"
        self._ranges = ranges(len(units), world.size)
        self._claims = Claims(store, told, world.rank, world.size, len(self._ranges))
        self._todo: deque[tuple[Unit, Claim, bool]] = deque()
        """Units that are done next, of which range they are, and whether they end it."""
        self._asked_at: float | None = None
        self._shared_at = time.monotonic()
        self._own_kept = self._own_part = self._signs = 0
        self._others = 0, 0
        """What the other ranks have told: steps of this generation in finished units, and in those in the making."""
        self._reporter = self._begin_report(merging) if world.rank == 0 else None

    def run(self, work: Callable[[Unit, Tick], Any], ahead: Callable[[Unit], None] | None = None) -> bool:
        """Do units until all units of the world have results.

        Args:
            work: does one unit and returns its result, a pyarrow.Table; everything else it made is stored already.
            ahead: told of each unit before, so that what it needs is got ready while AHEAD - 1 others are done.

        Returns:
            Whether all units are done; False if the world is asked to leave.
        """
        told, least = 0, 1 if ahead is None else AHEAD
        while self._fill(least):
            if self._context.drain.requested():
                return False
            if ahead is not None:
                for coming, *_ in islice(self._todo, told, least):
                    ahead(coming)
            told = min(least, len(self._todo)) - 1
            unit, claim, last = self._todo.popleft()
            try:
                self._keep(unit, work(unit, self._tick))
            except Interrupted:
                return False
            if last:
                self._claims.finish(claim)
        ended = self._claims.all_finished()
        if ended and self._reporter is not None:
            self._reporter.ended()
        return ended

    def results(self, numbers: range | None = None) -> Iterator[Any]:
        """Results of all units, or of some, in the units' order; few are held at a time. That it gets on is recorded,
        since no step is made meanwhile.

        Raises:
            DataError: one is missing or damaged.
        """
        wanted = range(len(self._units)) if numbers is None else numbers
        return read_in_order(lambda number: self._result(self._units[number].name), wanted, self._context.reporter)

    def wait_for(self, uri: str) -> bool:
        """Wait until rank 0 has written the stage's last object; False if the world is asked to leave."""
        return wait_until(lambda: self._store.exists(uri), self._context.drain.requested, POLL_SECONDS)

    def _fill(self, least: int) -> bool:
        """Have `least` units to do, if there are so many; wait for the first. False if none is left, or to leave."""

        def found() -> bool:
            while len(self._todo) < least:
                claim = self._claims.take()
                if claim is None:
                    break
                units = [self._units[number] for number in self._ranges[claim.number]]
                left = [unit for unit in units if not self._store.exists(self._result_uri(unit))]
                self._todo += [(unit, claim, unit is left[-1]) for unit in left]
                if not left:
                    self._claims.finish(claim)
            if not self._todo:
                self._share()
            return bool(self._todo) or self._claims.all_finished()

        return wait_until(found, self._context.drain.requested, POLL_SECONDS) and bool(self._todo)

    def _keep(self, unit: Unit, result: Any) -> None:
        try:
            self._store.put_once(self._result_uri(unit), sealed_parquet(result))
            self._own_kept += unit.weight
        except AlreadyExists:
            # Another rank held the range as well, was first and has counted the unit.
            log.info("%s: done by another rank meanwhile", self._result_uri(unit))
        self._own_part = 0
        self._share(ended=True)

    def _tick(self, part: int) -> None:
        self._own_part = part
        if self._context.drain.requested():
            self._asked_at = self._asked_at or time.monotonic()
            if time.monotonic() - self._asked_at > self._context.config.grace_seconds / 2:
                raise Interrupted
        self._share()

    def _share(self, ended: bool = False) -> None:
        """Every rank tells how far it is, now and then; rank 0 puts it together, also when it has `ended` a unit."""
        now = time.monotonic()
        due = now - self._shared_at >= SHARE_SECONDS
        if due:
            self._shared_at = now
            self._signs += 1
            self._claims.show_life({"kept": self._own_kept, "steps": self._own_part, "sign": self._signs})
        if self._reporter is not None and (due or ended):
            if due:
                others = [sign for sign in self._claims.signs() if sign["rank"] != self._context.world.rank]
                self._others = sum(sign["kept"] for sign in others), sum(sign["steps"] for sign in others)
            self._reporter.write(self._own_kept + self._others[0], self._own_part + self._others[1])

    def _begin_report(self, merging: bool) -> _Steps | _Phase:
        found = self._store.list(self._folder)
        kept = {info.uri.rsplit("/", 1)[1].removesuffix(".parquet") for info in found}
        weights = [(unit.weight, unit.name in kept) for unit in self._units]
        done = sum(weight for weight, is_kept in weights if is_kept)
        total = sum(weight for weight, _ in weights)
        return _Phase(self._context, done, total) if merging else _Steps(self._context, self._folder, done, total)

    def _result(self, name: str) -> Any:
        uri = f"{self._folder}/{name}.parquet"
        try:
            return read_checked(self._store, uri, unsealed_parquet, remedy="delete it to have the unit redone")
        except ObjectMissing as error:
            raise DataError(f"{uri}: missing result of a unit; run the stage again to have it redone") from error

    def _result_uri(self, unit: Unit) -> str:
        return f"{self._folder}/{unit.name}.parquet"


def ranges(total: int, ranks: int) -> list[range]:
    """The units in ranges, the same on every rank: long ones first, single units last, so that all end together."""
    found: list[range] = []
    start = 0
    while start < total:
        size = max(1, (total - start) // (RANGES_PER_RANK * ranks))
        found.append(range(start, start + size))
        start += size
    return found


def read_in_order(read: Callable[[Key], Found], keys: Sequence[Key], reporter: StageReporter) -> Iterator[Found]:
    """What is read for each key, in the order of the keys; READERS read ahead, and few results are held at a time. That
    it gets on is recorded, since no step is made meanwhile.
    """
    told, asked = time.monotonic(), iter(keys)
    with ThreadPoolExecutor(READERS) as pool:
        ahead = deque(pool.submit(read, key) for key in islice(asked, 2 * READERS))
        for done in range(1, len(keys) + 1):
            found = ahead.popleft()
            ahead.extend(pool.submit(read, key) for key in islice(asked, 1))
            yield found.result()
            if done == len(keys) or time.monotonic() - told >= SHARE_SECONDS:
                told = time.monotonic()
                reporter.phase("merge", done, len(keys))


def wait_until(ready: Callable[[], bool], leaving: Callable[[], bool], longest: float) -> bool:
    """Look until something is ready, with pauses of at most `longest` seconds; False if the process is to leave."""
    for turn in count():
        if ready():
            return True
        if leaving():
            return False
        # The first looks are quick ones: most waits are for what is nearly there.
        time.sleep(min(longest, 0.05 * 2 ** min(turn, 8)))
    raise AssertionError("unreachable")


class StepRecords:
    """Turns progress into records: a step for work that is done, a checkpoint for work that a restart keeps.

    Args:
        reporter: of the stage.
        uri: where kept work lies.
        size: worker processes.
        resumed: steps that earlier generations have done.
        total: of the stage, as far as it is known.
    """

    def __init__(self, reporter: StageReporter, uri: str, size: int, resumed: int, total: int) -> None:
        self._reporter, self._uri = reporter, uri
        self._step = self._kept = resumed
        self._at = datetime.now(UTC)
        reporter.started(size, resumed, total)

    def write(self, step: int, kept: int) -> None:
        """Tell that `step` steps are done and `kept` of them kept, those of earlier generations included."""
        now = datetime.now(UTC)
        if step > self._step:
            self._reporter.step(step, self._at, now, Work(samples=step - self._step))
            self._step, self._at = step, now
        if kept > self._kept:
            self._kept = kept
            self._reporter.checkpoint(kept, now, now, self._uri)


class _Steps:
    """Records of units that are steps."""

    def __init__(self, context: StageContext, folder: str, resumed: int, total: int) -> None:
        self._records = StepRecords(context.reporter, folder, context.world.size, resumed, total)
        self._resumed, self._total = resumed, total

    def write(self, kept: int, parts: int) -> None:
        """Tell of `kept` steps that this generation did in finished units, and `parts` in units that are being done.

        Units that ended before this generation's first look at the results count in it and in `kept`.
        """
        kept = min(self._resumed + kept, self._total)
        self._records.write(min(kept + parts, self._total), kept)

    def ended(self) -> None:
        """All units have results."""
        self.write(self._total, 0)


class _Phase:
    """Tells that a merge gets on."""

    def __init__(self, context: StageContext, resumed: int, total: int) -> None:
        self._reporter, self._resumed, self._total = context.reporter, resumed, total

    def write(self, kept: int, parts: int) -> None:
        """Of `kept` units in finished parts, and `parts` in those that are being put together."""
        self._reporter.phase("merge", min(self._resumed + kept + parts, self._total), self._total)

    def ended(self) -> None:
        """All parts are stored."""
        self._reporter.phase("merge", self._total, self._total)
