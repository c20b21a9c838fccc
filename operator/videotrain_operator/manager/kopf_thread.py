"""kopf in a thread and an event loop of its own, started anew whenever it gives up.

It has them because it cancels every task of its loop when it ends, whosever they are, and it ends when refusals go on
for a while, as they do while an API server or what stands before it starts anew. That is no reason for anything else
here to end: runs go on, and with them their loops, caches and the Lease.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import kopf
from kubernetes.aio.client import Configuration

from videotrain_operator.kube.run_watch import Runs
from videotrain_operator.manager import handlers

WATCH_SECONDS: Final = 60
"""The server ends kopf's watch after so long, far less than app.SILENT_SECONDS: only the answer to the next one tells
that the server is there, since kopf keeps bookmarks to itself."""
AGAIN_SECONDS: Final = 1.0
"""How long to wait before kopf, which gave up, is started anew."""
_log = logging.getLogger(__name__)


class KopfThread:
    """Runs the handlers of `manager.handlers`."""

    def __init__(self, runs: Runs, load_configuration: Callable[[], Awaitable[Configuration]]) -> None:
        """Begin without a thread; `follow` starts it.

        Args:
            runs: is told what the watch sees.
            load_configuration: gives the present configuration of the client; called in kopf's loop.
        """
        self._runs = runs
        self._load_configuration = load_configuration
        self._stop = threading.Event()
        self._end: Callable[[], object] = lambda: None

    async def follow(self, namespaces: tuple[str, ...], on_connected: Callable[[], None]) -> None:
        """Watch until `stop`.

        Args:
            namespaces: where; everywhere if empty.
            on_connected: called, in this loop, whenever kopf begins to watch.

        Raises:
            Exception: it could not begin even once.
        """
        logging.getLogger("kopf").setLevel(logging.WARNING)
        # It warns at each start that signals are not its business.
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        connected = False

        def begun() -> None:
            nonlocal connected
            connected = True
            on_connected()

        while not self._stop.is_set():
            memo = handlers.Memo(
                loop=asyncio.get_running_loop(),
                runs=self._runs,
                watch_seconds=WATCH_SECONDS,
                load_configuration=self._load_configuration,
                on_connected=begun,
            )
            try:
                await asyncio.to_thread(asyncio.run, self._kopf(memo, namespaces))
            except Exception as error:
                if not connected:
                    raise
                _log.warning("runs are not watched, next try in %s s: %s", AGAIN_SECONDS, error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _kopf(self, memo: handlers.Memo, namespaces: tuple[str, ...]) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._end = lambda: loop.call_soon_threadsafe(stop.set)
        if self._stop.is_set():
            return
        await kopf.operator(
            registry=handlers.registry,
            memo=memo,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
        )

    def stop(self) -> None:
        """Let `follow` return soon; harmless when it has ended already."""
        self._stop.set()
        with suppress(RuntimeError):  # that loop has ended already
            self._end()
