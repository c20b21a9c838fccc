"""HTTP servers of the operator, which share its event loop with the passes of runs: no stranger holds them up.

aiohttp parses, and closes connections that say nothing. What it has no limit for stands here: how many connections
there are, and whose.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

MOST_CONNECTIONS: Final = 256
IDLE_SECONDS: Final = 30.0
"""From the begin of a connection, or the end of its last request, until the head of the next request is whole."""
HANDSHAKE_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0
"""How long requests may go on once the server is to end."""
_TLS_CLOSE_SECONDS: Final = 1.0
_LONGEST_LINE: Final = 8190
_MOST_HEADERS: Final = 32
"""An API server sends eight, a scraper or a kubelet fewer."""
_AGAIN_SECONDS: Final = 1.0
"""After so long accepting is tried again, should the process have no descriptor left."""
_log = logging.getLogger(__name__)


def listen(address: str, port: int) -> socket.socket:
    """One socket, for both families of addresses if no address is given, so that port 0 means one port.

    Raises:
        OSError: the port cannot be used.
    """
    if address:
        return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


class Connections:
    """The connections of one server.

    One more than there may be takes the place of the oldest of the address that has the most, so that whoever opens
    many takes them from itself and not from others.
    """

    def __init__(self, server: web.Server, context: Callable[[], ssl.SSLContext] | None, most: int) -> None:
        self._server, self._context, self._most = server, context, most
        self._handshakes: dict[asyncio.Task[None], str] = {}
        self.dropped = {"crowded": 0, "handshake": 0, "malformed": 0}
        """Connections that were closed to make room, never got through their TLS handshake, or brought what is no HTTP
        or has too large a head."""

    async def accept(self, listener: socket.socket) -> None:
        """Accept for ever, one connection in a turn of the event loop."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:
                _log.warning("no connection could be accepted: %s", error)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            self._make_room()
            task = loop.create_task(self._greet(accepted))
            self._handshakes[task] = peer[0]
            task.add_done_callback(self._handshakes.pop)
            await asyncio.sleep(0)

    def filter(self, record: logging.LogRecord) -> bool:
        """Of aiohttp's log: what strangers send is counted, and is no line each time."""
        malformed = record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)
        self.dropped["malformed"] += malformed
        return not malformed

    async def close(self) -> None:
        """End handshakes that go on."""
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _make_room(self) -> None:
        held: dict[str, list[Callable[[], object]]] = defaultdict(list)
        for task, address in self._handshakes.items():
            held[address].append(task.cancel)
        for handler in self._server.connections:
            transport = handler.transport
            if transport is not None and not transport.is_closing():
                held[transport.get_extra_info("peername")[0]].append(transport.abort)
        if sum(map(len, held.values())) >= self._most:
            self.dropped["crowded"] += 1
            max(held.values(), key=len)[0]()

    async def _greet(self, accepted: socket.socket) -> None:
        tls = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": _TLS_CLOSE_SECONDS}
        context = self._context() if self._context is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server, accepted, ssl=context, **(tls if context is not None else {})
            )
        except OSError as error:
            self.dropped["handshake"] += 1
            _log.debug("a handshake failed: %s", error)


@asynccontextmanager
async def serving(
    application: web.Application,
    listener: socket.socket,
    *,
    context: Callable[[], ssl.SSLContext] | None = None,
    most: int = MOST_CONNECTIONS,
) -> AsyncIterator[Connections]:
    """Serve an application until left, which closes the socket.

    Args:
        application: takes no compressed bodies; it bounds what it reads of a body.
        listener: listens already.
        context: of TLS, asked for each connection; plain HTTP without.
        most: connections at the same time.
    """
    log = logging.Logger(__name__)  # of this server alone
    log.parent = _log
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=log,
        shutdown_timeout=CLOSE_SECONDS,
        keepalive_timeout=IDLE_SECONDS,
        max_line_size=_LONGEST_LINE,
        max_field_size=_LONGEST_LINE,
        max_headers=_MOST_HEADERS,
        lingering_time=0,  # what is left of a body that was refused is not read
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None, "set up"
    connections = Connections(runner.server, context, most)
    log.addFilter(connections.filter)
    accepting = asyncio.create_task(connections.accept(listener))
    try:
        yield connections
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listener.close()
        await connections.close()
        await runner.cleanup()
