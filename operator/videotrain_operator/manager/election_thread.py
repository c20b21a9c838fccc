"""The election in a thread, an event loop and connections of its own, so that a busy process keeps its Lease.

A pass over a large run, or a burst of a thousand, may hold the process's loop for longer than a request for the Lease
may take. What keeps a process that hangs for good from leading for ever is `Election`'s question whether it is alive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from videotrain_operator.cluster.clock import Clock
from videotrain_operator.kube.client import KubeClient
from videotrain_operator.manager.election import Election, NotLeader

Found = TypeVar("Found")


class RelayedClock(Clock):
    """Hands what servers tell another thread of the time on to the clock of this one."""

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        """Relay to a clock.

        Args:
            clock: is told.
            loop: in which it is told.
        """
        super().__init__()
        self._clock, self._loop = clock, loop

    def note(self, told: datetime, sent: float, received: float, *, resolution: float = 1.0) -> None:
        """A server told the time; see Clock.note."""
        self._loop.call_soon_threadsafe(partial(self._clock.note, told, sent, received, resolution=resolution))


class ElectionThread:
    """An Election as seen from another thread. Use it as an async context manager."""

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[KubeClient]], elect: Callable[[KubeClient], Election]
    ) -> None:
        """Begin without a thread; entering starts it.

        Args:
            connect: opens a client; called in the thread's loop.
            elect: makes the election with it.
        """
        self._connect, self._elect = connect, elect
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="election", daemon=True)
        self._opened = AsyncExitStack()
        self._election: Election | None = None

    @property
    def leading(self) -> bool:
        """The Lease is held, for certain."""
        return self._election is not None and self._election.leading

    def fence(self) -> None:
        """Stand before every write; callable from any thread.

        Raises:
            NotLeader: this process must not write.
        """
        if self._election is None:
            raise NotLeader("the election has not begun")
        self._election.fence()

    async def __aenter__(self) -> ElectionThread:
        self._thread.start()
        try:
            self._election = await self._there(self._open())
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._there(self._opened.aclose())
        await self._end()

    async def acquire(self) -> None:
        """Return when the Lease is held."""
        await self._there(self._begun().acquire())

    async def keep(self) -> None:
        """Renew; return when the Lease is lost."""
        await self._there(self._begun().keep())

    async def release(self) -> None:
        """Give the Lease back, so that the next leader need not wait."""
        await self._there(self._begun().release())

    def _begun(self) -> Election:
        assert self._election is not None, "use `async with ElectionThread(...)`"
        return self._election

    async def _open(self) -> Election:
        return self._elect(await self._opened.enter_async_context(self._connect()))

    async def _there(self, work: Coroutine[Any, Any, Found]) -> Found:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
