"""Connections to agents, of which a few runs whose agents stall must not take all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

SHARE: Final = 4
"""One run may have one more for so many that are left for that, so the more runs want more, the fewer each gets."""


class Connections:
    """So many connections, shared by runs: one for each as long as any is free, and more for some from one half."""

    def __init__(self, most: int, most_of_a_run: int) -> None:
        """All are free.

        Args:
            most: of all runs.
            most_of_a_run: of one, however many are free.
        """
        self._free, self._free_for_more, self._most_of_a_run = most, most // 2, most_of_a_run
        self._used: Counter[bytes] = Counter()
        self._waiting: dict[bytes, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def taken(self, run: bytes) -> AsyncIterator[None]:
        """Have a connection; `run` is whatever tells runs apart."""
        await self._take(run)
        try:
            yield
        finally:
            self._give(run)

    def _may_take(self, run: bytes) -> bool:
        used = self._used[run]
        return self._free > 0 and (not used or used < min(self._most_of_a_run, self._free_for_more // SHARE))

    async def _take(self, run: bytes) -> None:
        if run not in self._waiting and self._may_take(run):
            self._count(run, 1)
            return
        turn = asyncio.get_running_loop().create_future()
        turns = self._waiting.setdefault(run, deque())
        turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._give(run)  # it came together with the cancellation
            elif turn in turns:
                turns.remove(turn)
                if not turns:
                    del self._waiting[run]
            raise

    def _give(self, run: bytes) -> None:
        self._count(run, -1)
        # Whoever has fewest goes first, of those the one that has waited longest.
        while self._waiting:
            run = min(self._waiting, key=self._used.__getitem__)
            if not self._may_take(run):
                return
            turns = self._waiting[run]
            turn = turns.popleft()
            if not turns:
                del self._waiting[run]
            # One that was cancelled in this moment goes by itself.
            if not turn.done():
                self._count(run, 1)
                turn.set_result(None)

    def _count(self, run: bytes, change: int) -> None:
        self._free -= change
        if self._used[run] + min(change, 0):  # it is not a run's only one
            self._free_for_more -= change
        self._used[run] += change
        if not self._used[run]:
            del self._used[run]
