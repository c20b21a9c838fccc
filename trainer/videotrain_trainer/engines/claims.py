"""Ranges of work that ranks claim by conditional writes, so that the fast ones do what the slow ones have not begun.

Ranges have numbers, and all ranks know what a number means. A rank claims those of its own share, then what others
have left, then what a holder left lying that has shown no sign of life for LAPSE_SECONDS. Two ranks may so do the same
range: what it leaves must be written once, by whomever comes first.

A claim is one write, its end another. Listings are asked for by ranks alone that have nothing left of their own.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.errors import AlreadyExists, ObjectMissing
from videotrain_trainer.storage import ObjectStore

LAPSE_SECONDS = 60.0
"""A claim may be taken over when its holder has told nothing for so long, by the clock of whoever takes it over."""
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
        self._seen: dict[tuple[int, int], tuple[str, float]] = {}
        """Last sign of life of a claim's holder, and since when it is the last one."""
        self.extend(count)

    def extend(self, count: int) -> None:
        """There are so many ranges in all."""
        self._own += [number for number in range(self._count, count) if number % self._ranks == self._rank]
        self._count = max(self._count, count)

    def take(self) -> Claim | None:
        """Claim a range; None if there is none to be had now."""
        while self._own:
            claim = self._claim(self._own.popleft(), 0)
            if claim is not None:
                return claim
        self._look()
        free = [number for number in range(self._count) if number not in self._taken]
        start = self._rank % max(1, len(free))  # ranks that look at the same time begin apart
        for number in free[start:] + free[:start]:
            claim = self._claim(number, 0)
            if claim is not None:
                return claim
        return self._take_over()

    def finish(self, claim: Claim) -> None:
        """All work of a range is stored."""
        self._store.put(self._uri(claim.number, _DONE), sealed_json({"rank": self._rank}))
        self._finished.add(claim.number)

    def all_finished(self) -> bool:
        """Whether all ranges are finished, by whomever."""
        if len(self._finished) < self._count:
            self._look()
        return len(self._finished) == self._count

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
        uri, claimed = self._uri(number, str(attempt)), sealed_json({"rank": self._rank})
        try:
            self._store.put(uri, claimed, only_if_absent=True)
        except AlreadyExists:
            # After a broken connection it may be our own.
            if self._store.get(uri) != claimed:
                self._taken[number] = max(attempt, self._taken.get(number, 0))
                return None
        self._taken[number] = attempt
        return Claim(number, attempt)

    def _look(self) -> None:
        for info in self._store.list(f"{self._prefix}/claims"):
            number, _, what = info.uri.rsplit("/", 1)[1].removesuffix(".json").partition(".")
            if what == _DONE:
                self._finished.add(int(number))
            else:
                self._taken[int(number)] = max(int(what), self._taken.get(int(number), 0))

    def _take_over(self) -> Claim | None:
        """A range whose holder seems to be gone. That it is alive is told by its sign of life, whatever its content."""
        held = [entry for entry in self._taken.items() if entry[0] not in self._finished]
        if not held:
            return None
        found = self._store.list(f"{self._prefix}/ranks")
        signs = {
            int(info.uri.rsplit("/", 1)[1].removesuffix(".json")): f"{info.etag} {info.modified}" for info in found
        }
        now = time.monotonic()
        for number, attempt in held:
            holder = self._holder(number, attempt)
            sign = signs.get(holder, "none")
            seen, since = self._seen.get((number, attempt), ("", now))
            if sign != seen:
                self._seen[number, attempt] = sign, now
            elif holder != self._rank and now - since >= LAPSE_SECONDS:
                claim = self._claim(number, attempt + 1)
                if claim is not None:
                    return claim
        return None

    def _holder(self, number: int, attempt: int) -> int:
        if (number, attempt) not in self._holders:
            try:
                found = read_checked(self._store, self._uri(number, str(attempt)), unsealed_json)
            except ObjectMissing:  # listed by a store whose replicas do not agree yet
                return self._rank
            self._holders[number, attempt] = int(found["rank"])
        return self._holders[number, attempt]

    def _uri(self, number: int, what: str) -> str:
        return f"{self._prefix}/claims/{number:08d}.{what}.json"
