"""Places for the reviews that are read and judged at the same time, so that no caller takes all of them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class NoSeat(Exception):
    """So many reviews of this address wait already that one more would not be judged in time."""


class Seats:
    """A number of places, of which one address has at most a part. Addresses that wait take turns."""

    def __init__(self, count: int, of_one: int, waiting: int) -> None:
        """Make all of them free.

        Args:
            count: places.
            of_one: places that one address may have.
            waiting: how many reviews of one address may wait.
        """
        self._free, self._of_one, self._most_waiting = count, of_one, waiting
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Whose turn it is stands first."""

    @asynccontextmanager
    async def taken(self, address: str) -> AsyncIterator[None]:
        """Wait for a place of an address, and have it until left.

        Raises:
            NoSeat: too many of the address wait.
        """
        if not self._free or self._held[address] >= self._of_one:
            await self._wait(address)
        else:
            self._give(address)
        try:
            yield
        finally:
            self._take_back(address)

    async def _wait(self, address: str) -> None:
        line = self._waiting.setdefault(address, deque())
        if len(line) >= self._most_waiting:
            raise NoSeat(f"{len(line)} reviews of {address} wait already")
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self._take_back(address)
            elif turn in line:
                line.remove(turn)
            raise

    def _give(self, address: str) -> None:
        self._free -= 1
        self._held[address] += 1

    def _take_back(self, address: str) -> None:
        self._free += 1
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]
        for next_, line in list(self._waiting.items()):
            while line and line[0].cancelled():
                line.popleft()
            if not line:
                del self._waiting[next_]
            elif self._held[next_] < self._of_one:
                self._give(next_)
                line.popleft().set_result(None)
                self._waiting[next_] = self._waiting.pop(next_)  # behind all others
                return
