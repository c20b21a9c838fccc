"""Ranges of work that ranks claim by conditional writes, so that the fast ones do what the slow ones have not begun.

Ranges have numbers, and all ranks know what a number means. A rank claims those of its own share, then what others
have left, then what a holder left lying that has shown no sign of life for LAPSE_SECONDS. Two ranks may so do the same
range: what it leaves must be written once, by whomever comes first.

    progress/g000001/claims/000000/00000000.0.json      a claim, one write
    progress/g000001/claims/000000/00000000.done.json   its end, another
    progress/g000001/claims/finished.json               rank 0 has seen the ends of all
    progress/g000001/ranks/00000.json                   a rank's last sign of life

Claims lie in blocks of neighbours. Only a rank that has nothing left of its own asks for listings, of a few blocks at a
time, and never again of one in which all is done: what it asks for does not grow with the number of ranges.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.errors import AlreadyExists, ObjectMissing, StorageUnavailable
from videotrain_trainer.storage import ObjectInfo, ObjectStore

LAPSE_SECONDS = 60.0
"""A claim may be taken over when its holder has told nothing for so long, by the clock of whoever takes it over."""
BLOCK = 256
"""Ranges whose claims are listed together: an answer of an object store has room for three entries of each."""
LOOKS = 4
"""Blocks that a rank without work looks at before it waits."""
LISTERS = 32
"""Blocks that rank 0 lists at the same time, to see that all is done."""
_DONE = "done"


@dataclass(frozen=True)
class Claim:
    """A range that this rank holds."""

    number: int
    attempt: int
    """How often others have held it before."""


class Claims:
    """The claims of one rank in one generation.

    Args:
        store: object store.
        prefix: folder of the generation's claims and signs of life.
        rank: of this process.
        ranks: of the world.
        count: ranges that are known; more may be told later.
    """

    def __init__(self, store: ObjectStore, prefix: str, rank: int, ranks: int, count: int) -> None:
        self._store, self._prefix, self._rank, self._ranks = store, prefix, rank, ranks
        self._count = 0
        self._own: deque[int] = deque()
        self._taken: dict[int, int] = {}
        """Highest attempt by number, as far as this rank knows."""
        self._finished: set[int] = set()
        self._holders: dict[tuple[int, int], int] = {}
        self._full: set[int] = set()
        """Blocks in which every range is taken."""
        self._closed: set[int] = set()
        """Blocks in which every range is finished."""
        self._signs: dict[int, tuple[str, float]] = {}
        """By rank: its last sign of life, and since when it is the last one."""
        self._next_held = rank
        self._looked_for_lost = -LAPSE_SECONDS
        self.extend(count)

    def extend(self, count: int) -> None:
        """There are so many ranges in all."""
        self._own += [number for number in range(self._count, count) if number % self._ranks == self._rank]
        if count > self._count:
            self._full.discard(self._count // BLOCK)
            self._closed.discard(self._count // BLOCK)
            self._count = count

    def take(self) -> Claim | None:
        """Claim a range; None if there is none to be had now."""
        while self._own:
            claim = self._claim(self._own.popleft(), 0)
            if claim is not None:
                return claim
        return self._take_left() or self._take_over()

    def finish(self, claim: Claim) -> None:
        """All work of a range is stored."""
        self._store.put(self._uri(claim.number, _DONE), sealed_json({"rank": self._rank}))
        self._finished.add(claim.number)

    def all_finished(self) -> bool:
        """Whether all ranges are finished, by whomever: rank 0 looks, and tells the others."""
        uri = f"{self._prefix}/claims/finished.json"
        if self._rank != 0:
            return self._store.exists(uri)
        left = [block for block in self._blocks(self._closed) if not self._is_closed(block)]
        for blocks in (left[start : start + LISTERS] for start in range(0, len(left), LISTERS)):
            with ThreadPoolExecutor(len(blocks)) as pool:
                for found in pool.map(self._listed, blocks):
                    self._note(found)
            if not all(self._is_closed(block) for block in blocks):
                return False
        self._store.put(uri, sealed_json({"ranges": self._count}))
        return True

    def show_life(self, sign: dict[str, int]) -> None:
        """Tell that this process gets on.

        Args:
            sign: differs from the one before it.
        """
        self._store.put(f"{self._prefix}/ranks/{self._rank:05d}.json", sealed_json({"rank": self._rank, **sign}))

    def signs(self) -> list[dict[str, int]]:
        """What all ranks have told last."""
        found = self._store.list(f"{self._prefix}/ranks")
        return [read_checked(self._store, info.uri, unsealed_json) for info in found]

    def _claim(self, number: int, attempt: int) -> Claim | None:
        claimed = self._write_claim(self._uri(number, str(attempt)))
        self._taken[number] = max(attempt, self._taken.get(number, 0))
        return Claim(number, attempt) if claimed else None

    def _write_claim(self, uri: str) -> bool:
        """Whether a claim is this rank's now."""
        claim = sealed_json({"rank": self._rank})
        try:
            self._store.put(uri, claim, only_if_absent=True)
        except AlreadyExists:
            # After a broken connection it may be our own; after another one's attempt (409) there may be none.
            with suppress(ObjectMissing):
                return bool(read_checked(self._store, uri, unsealed_json)["rank"] == self._rank)
        except StorageUnavailable:
            pass
        else:
            return True
        try:
            self._store.put_once(uri, claim)
        except AlreadyExists:
            return False
        return True

    def _take_left(self) -> Claim | None:
        """A range that nobody has begun. The last blocks have most of them, for every rank begins with its first ones;
        ranks that look at the same time begin apart.
        """
        blocks = self._blocks(self._full)[::-1]
        start = self._rank % max(1, len(blocks))
        for block in (blocks[start:] + blocks[:start])[:LOOKS]:
            self._note(self._listed(block))
            free = [number for number in self._numbers(block) if number not in self._taken]
            begin = self._rank % max(1, len(free))
            for number in free[begin:] + free[:begin]:
                claim = self._claim(number, 0)
                if claim is not None:
                    return claim
            self._full.add(block)
        return None

    def _take_over(self) -> Claim | None:
        """A range whose holder seems to be gone. That it is alive is told by its sign of life, whatever its content."""
        now = time.monotonic()
        blocks = self._blocks(self._closed)
        if not blocks or now - self._looked_for_lost < LAPSE_SECONDS / 10:
            return None
        self._looked_for_lost = now
        for info in self._store.list(f"{self._prefix}/ranks"):
            rank, sign = int(_stem(info)), f"{info.etag} {info.modified}"
            if self._signs.get(rank, ("", now))[0] != sign:
                self._signs[rank] = sign, now
        start = self._next_held % len(blocks)
        self._next_held += LOOKS
        for block in (blocks[start:] + blocks[:start])[:LOOKS]:
            self._note(self._listed(block))
            if self._is_closed(block):
                continue
            for number in self._numbers(block):
                if number in self._taken and number not in self._finished:
                    attempt = self._taken[number]
                    holder = self._holder(number, attempt)
                    _, since = self._signs.setdefault(holder, ("none", now))
                    lapsed = holder != self._rank and now - since >= LAPSE_SECONDS
                    claim = self._claim(number, attempt + 1) if lapsed else None
                    if claim is not None:
                        return claim
        return None

    def _blocks(self, without: set[int]) -> list[int]:
        return [block for block in range(-(-self._count // BLOCK)) if block not in without]

    def _numbers(self, block: int) -> range:
        return range(block * BLOCK, min((block + 1) * BLOCK, self._count))

    def _is_closed(self, block: int) -> bool:
        if all(number in self._finished for number in self._numbers(block)):
            self._closed.add(block)
        return block in self._closed

    def _listed(self, block: int) -> list[ObjectInfo]:
        return self._store.list(f"{self._prefix}/claims/{block:06d}")

    def _note(self, claims: Iterable[ObjectInfo]) -> None:
        for info in claims:
            number, _, what = _stem(info).partition(".")
            if what == _DONE:
                self._finished.add(int(number))
            else:
                self._taken[int(number)] = max(int(what), self._taken.get(int(number), 0))

    def _holder(self, number: int, attempt: int) -> int:
        if (number, attempt) not in self._holders:
            try:
                found = read_checked(self._store, self._uri(number, str(attempt)), unsealed_json)
            except ObjectMissing:  # listed by a store whose replicas do not agree yet
                return self._rank
            self._holders[number, attempt] = int(found["rank"])
        return self._holders[number, attempt]

    def _uri(self, number: int, what: str) -> str:
        return f"{self._prefix}/claims/{number // BLOCK:06d}/{number:08d}.{what}.json"


def _stem(info: ObjectInfo) -> str:
    return info.uri.rsplit("/", 1)[1].removesuffix(".json")
