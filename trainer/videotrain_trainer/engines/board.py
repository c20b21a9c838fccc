"""The units of a stage in the object store: the ranges that were found, and the results of those that are done.

    progress/g000001/ranges/000000.json     ranges of units that have no results yet, in the order of their finding
    progress/g000001/ranges/all.json        how many there are, once all are found
    units/RANGE.json                        results of a range, written once and last
    begun/RANGE/WHO.json                    results of some units of a range, while it is not done

Ranges are published in pages: the first ones alone, so that work begins, then twice as many each time, up to a page's
size. Requests grow with the number of ranges: no rank asks for the whole list, and nobody asks for a unit.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, ClassVar, TypeVar

from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.engines.interface import SHARE_SECONDS, Member, UnitRange
from videotrain_trainer.errors import AlreadyExists, DataError, ObjectMissing
from videotrain_trainer.storage import ObjectStore

POLL_SECONDS = 0.5
"""Longest pause between two looks for the stage's last object."""
PAGES_HELD = 4
"""Pages of ranges that a process keeps when it has read them."""
READERS = 32
"""Results that are read at the same time."""
Results = dict[str, dict[str, Any]]
"""Results by the names of their units."""
Key = TypeVar("Key")
Found = TypeVar("Found")


@dataclass
class OpenRange:
    """A range that this process does."""

    number: int
    units: UnitRange
    results: Results
    stored: int = 0
    """Results of it that a restart keeps."""

    @property
    def done(self) -> bool:
        """Every unit has a result."""
        return len(self.results) == len(self.units.units)


class Board:
    """What the processes of a stage know of each other's units.

    Args:
        store: object store.
        member: this process.
    """

    page_ranges: ClassVar[int] = 16
    """Ranges of a page, a power of two: a rank reads a page for each range that it does."""

    def __init__(self, store: ObjectStore, member: Member) -> None:
        self._store = store
        self._member = member
        self._prefix = member.prefix
        self._who = f"g{member.generation:06d}-{member.rank:05d}"
        self.folder = f"{member.prefix}/progress/g{member.generation:06d}"
        self._page: list[UnitRange] = []
        """Found, and not published yet."""
        self._pages: OrderedDict[int, list[UnitRange]] = OrderedDict()

    def publish(self, number: int, found: UnitRange | None) -> None:
        """Let all ranks see a range, with others of its page, or how many there are. Called in order of numbers."""
        if found is not None:
            self._page.append(found)
        page, ends = self._place(number - 1 if found is None else number)
        if self._page and (found is None or ends):
            fields = [held.fields() for held in self._page]
            self._store.put(f"{self.folder}/ranges/{page:06d}.json", sealed_json({"ranges": fields}))
            self._page = []
        if found is None:
            self._store.put(f"{self.folder}/ranges/all.json", sealed_json({"ranges": number}))

    def published(self, number: int) -> UnitRange | None:
        """A range, if it was published."""
        page, _ = self._place(number)
        if page not in self._pages:
            fields = self._read(f"{self.folder}/ranges/{page:06d}.json")
            if fields is None:
                return None
            self._pages[page] = [UnitRange.from_fields(found) for found in fields["ranges"]]
            while len(self._pages) > PAGES_HELD:
                self._pages.popitem(last=False)
        ranges = self._pages[page]
        at = number - self._start(page)
        return ranges[at] if at < len(ranges) else None

    def published_end(self) -> int | None:
        """How many ranges there are, once that is known."""
        fields = self._read(f"{self.folder}/ranges/all.json")
        return None if fields is None else int(fields["ranges"])

    def finished(self) -> set[str]:
        """Names of ranges that have all their results."""
        found = self._store.list(f"{self._prefix}/units")
        return {info.uri.rsplit("/", 1)[1].removesuffix(".json") for info in found}

    def begun(self) -> set[str]:
        """Names of ranges that have some."""
        return {info.uri.rsplit("/", 2)[1] for info in self._store.list(f"{self._prefix}/begun")}

    def open(self, number: int, units: UnitRange) -> OpenRange:
        """A range, with what others left of it."""
        left: Results = {}
        for info in self._store.list(f"{self._prefix}/begun/{units.name}"):
            left |= self._read(info.uri) or {}
        return OpenRange(number, units, left, len(left))

    def keep(self, held: OpenRange, results: Results) -> None:
        """Store the results so far of a range that is not done."""
        if len(results) > held.stored:
            self._store.put(f"{self._prefix}/begun/{held.units.name}/{self._who}.json", sealed_json(results))
            held.stored = len(results)

    def finish(self, held: OpenRange) -> bool:
        """Store the results of a range that is done; False if another process was first."""
        name = held.units.name
        results = [held.results[unit.name] for unit in held.units.units]
        try:
            self._store.put_once(self._uri(name), sealed_json({"by": self._who, "results": results}))
            first = True
        except AlreadyExists:
            first = False
        for info in self._store.list(f"{self._prefix}/begun/{name}") if held.stored else ():
            self._store.delete(info.uri)
        return first

    def results(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Results of all units of ranges, in their order. That it gets on is recorded, since no step is made meanwhile.

        Raises:
            DataError: one is missing or damaged.
        """
        tell = self._member.reporter.phase
        for results in read_in_order(self._results_of, list(names), lambda done, total: tell("merge", done, total)):
            yield from results

    def _results_of(self, name: str) -> list[dict[str, Any]]:
        fields = self._read(self._uri(name))
        if fields is None:
            uri = self._uri(name)
            raise DataError(f"{uri}: missing results of a range of units; run the stage again to have them redone")
        found: list[dict[str, Any]] = fields["results"]
        return found

    def _read(self, uri: str) -> dict[str, Any] | None:
        try:
            return read_checked(self._store, uri, unsealed_json, remedy="delete it to have its units redone")
        except ObjectMissing:
            return None

    def _place(self, number: int) -> tuple[int, bool]:
        """The page of a range, and whether it is the last one of it."""
        doublings = self.page_ranges.bit_length() - 1
        page = number.bit_length() if number < self.page_ranges else doublings + number // self.page_ranges
        return page, number + 1 == self._start(page + 1)

    def _start(self, page: int) -> int:
        """The first range of a page."""
        doublings = self.page_ranges.bit_length() - 1
        return (1 << page) >> 1 if page <= doublings else (page - doublings) * self.page_ranges

    def _uri(self, name: str) -> str:
        return f"{self._prefix}/units/{name}.json"


@dataclass
class Listed:
    """What the listing has found so far."""

    names: list[str] = field(default_factory=list)
    """Of the ranges, in their order."""
    weight: int = 0
    """Steps of all units."""
    kept: int = 0
    """Steps of units that had results before."""
    offered: int = 0
    complete: bool = False


class Listing:
    """Finds the ranges of a stage in a thread of its own, while the first of them are done already.

    Args:
        board: of the stage.
        ranges: finds them; used from the thread.
        offer: gets those that are not done, with their numbers; then None and how many they are. May wait.
    """

    def __init__(
        self, board: Board, ranges: Iterator[UnitRange], offer: Callable[[int, UnitRange | None], None]
    ) -> None:
        self.found = Listed()
        self._board = board
        self._ranges = ranges
        self._offer = offer
        self._trouble: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all are found, which is waited for so long.

        Raises:
            Exception: that ended the listing.
        """
        self._ended.wait(seconds)
        if self._trouble is not None:
            raise self._trouble
        return self.found.complete

    def _run(self) -> None:
        try:
            finished, begun = self._board.finished(), self._board.begun()
            for units in self._ranges:
                self._take(units, finished, begun)
            self._offer(self.found.offered, None)
            self.found.complete = True
        except BaseException as error:
            self._trouble = error
        finally:
            self._ended.set()

    def _take(self, units: UnitRange, finished: set[str], begun: set[str]) -> None:
        found, name = self.found, units.name
        if name in finished:
            found.kept += units.weight
        else:
            if name in begun:
                results: Mapping[str, Any] = self._board.open(0, units).results
                found.kept += sum(unit.weight for unit in units.units if unit.name in results)
            self._offer(found.offered, units)
            found.offered += 1
        found.weight += units.weight
        found.names.append(name)


def wait_for(member: Member, store: ObjectStore, uri: str) -> bool:
    """Wait until rank 0 has written the stage's last object; False if the world is asked to leave."""
    # So that a world of thousands does not ask for one object thousands of times a second.
    pause = POLL_SECONDS * max(1.0, member.size / 64)
    return wait_until(lambda: store.exists(uri), member.asked_to_leave, pause)


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


def read_in_order(
    read: Callable[[Key], Found], keys: Sequence[Key], tell: Callable[[int, int], None]
) -> Iterator[Found]:
    """What is read for each key, in the order of the keys; READERS read ahead, and few results are held at a time.

    Args:
        read: reads one; in threads.
        keys: what to read.
        tell: told now and then, and at the end, how many are read, and of how many.
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
                tell(done, len(keys))
