"""So many at the same time, and the most urgent of those that wait first."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Turn:
    """One that somebody has."""

    def __init__(self, take: Callable[[], Awaitable[None]], give: Callable[[], None]) -> None:
        self._take, self._give = take, give
        self._had = True

    @asynccontextmanager
    async def lent(self, seconds: float) -> AsyncIterator[None]:
        """Do what needs no turn: if it takes longer than so many seconds, others have the turn meanwhile.

        Whoever leaves without an exception has one again.
        """
        timer = asyncio.get_running_loop().call_later(seconds, self.end)
        try:
            yield
        finally:
            timer.cancel()
        if not self._had:
            await self._take()
            self._had = True

    def end(self) -> None:
        """Let others have it."""
        if self._had:
            self._had = False
            self._give()


class Turns:
    """A semaphore that whoever has waited longest beyond its patience gets first, so that nobody waits for ever."""

    def __init__(self, most: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """All turns are free.

        Args:
            most: how many have one at the same time.
            monotonic: the clock by which patience is measured, seconds.
        """
        self.most = most
        """May be changed while turns are taken; counts for whoever comes next."""
        self._taken = 0
        self._monotonic = monotonic
        self._asked = 0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not turn.done() for _, _, turn in self._waiting)

    @property
    def crowded(self) -> bool:
        """Somebody waits."""
        return any(not turn.done() for _, _, turn in self._waiting)

    @asynccontextmanager
    async def taken(self, patience: float = 0.0) -> AsyncIterator[Turn]:
        """Have a turn.

        Args:
            patience: for so many seconds those with less of it go first, also if they come later.
        """
        await self._take(patience)
        turn = Turn(lambda: self._take(0.0), self._give)
        try:
            yield turn
        finally:
            turn.end()

    async def _take(self, patience: float) -> None:
        if self._taken < self.most and not self._waiting:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._asked += 1
        heapq.heappush(self._waiting, (self._monotonic() + patience, self._asked, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give()  # it came together with the cancellation
            raise

    def _give(self) -> None:
        self._taken -= 1
        while self._waiting and self._taken < self.most:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                self._taken += 1
