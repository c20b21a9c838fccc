"""`kubectl port-forward`: connections to a pod's ports, as SPDY streams within a WebSocket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import WSMsgType, web

from videotrain.kubelet.spdy import (
    LARGEST_CHUNK,
    Connection,
    Echo,
    Opened,
    Received,
    Reset,
    SpdyError,
    data_frame,
    reset_frame,
)
from videotrain.tasks import end_all

PROTOCOL: Final = "SPDY/3.1+portforward.k8s.io"
MOST_CONNECTIONS: Final = 1000
"""At a time, of one `kubectl port-forward`."""
_LAST_PORT: Final = 65535


@dataclass
class _Forwarded:
    """One connection of the user's: a stream for its data, whose end is told on another one."""

    port: int
    arriving: asyncio.Queue[bytes]
    """Empty bytes: there is no more."""
    task: asyncio.Task[None] | None = None


class Forwarding:
    """All connections of one `kubectl port-forward`."""

    def __init__(self, socket: web.WebSocketResponse, address: str) -> None:
        """Nothing is connected yet.

        Args:
            socket: to kubectl, prepared.
            address: of the pod.
        """
        self._socket, self._address = socket, address
        self._spdy = Connection()
        self._error_streams: dict[str, int] = {}
        """By request."""
        self._data: dict[int, _Forwarded] = {}

    async def run(self) -> None:
        """Serve until kubectl goes."""
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.BINARY:
                    continue
                try:
                    events = list(self._spdy.feed(message.data))
                except SpdyError as error:
                    await self._socket.close(code=1002, message=str(error).encode()[:100])
                    return
                for event in events:
                    await self._obey(event)
        finally:
            await end_all([each.task for each in self._data.values() if each.task is not None])

    async def _obey(self, event: Opened | Received | Reset | Echo) -> None:
        if isinstance(event, Opened):
            await self._send(self._spdy.accept(event.stream))
            await self._open(event)
        elif isinstance(event, Received) and event.stream in self._data:
            forwarded = self._data[event.stream]
            if event.data:
                forwarded.arriving.put_nowait(event.data)
            if event.last:
                forwarded.arriving.put_nowait(b"")
        elif isinstance(event, Reset) and event.stream in self._data:
            task = self._data.pop(event.stream).task
            await end_all([task] if task is not None else [])
        elif isinstance(event, Echo):
            await self._send(event.frame)

    async def _open(self, opened: Opened) -> None:
        request, kind, port = (opened.headers.get(name, "") for name in ("requestid", "streamtype", "port"))
        crowded = max(len(self._data), len(self._error_streams)) >= MOST_CONNECTIONS
        if kind == "error" and not crowded:
            self._error_streams[request] = opened.stream
        elif kind == "data" and not crowded and port.isdecimal() and 0 < int(port) <= _LAST_PORT:
            forwarded = self._data[opened.stream] = _Forwarded(int(port), asyncio.Queue())
            forwarded.task = asyncio.create_task(self._forward(opened.stream, request, forwarded))
        else:
            self._error_streams.pop(request, None)
            await self._send(reset_frame(opened.stream))

    async def _forward(self, stream: int, request: str, forwarded: _Forwarded) -> None:
        try:
            problem = await self._carry(stream, forwarded)
            await self._send(data_frame(stream, b"", last=True))
            if (errors := self._error_streams.get(request)) is not None:
                await self._send(data_frame(errors, problem, last=True))
        finally:
            self._data.pop(stream, None)
            self._error_streams.pop(request, None)

    async def _carry(self, stream: int, forwarded: _Forwarded) -> bytes:
        """Both ways until the pod has no more; what went wrong, or nothing."""
        try:
            reader, writer = await asyncio.open_connection(self._address, forwarded.port)
        except OSError as error:
            return f"port {forwarded.port} of {self._address}: {error}".encode()
        sending = asyncio.create_task(_send_arriving(forwarded, writer))
        try:
            while data := await reader.read(LARGEST_CHUNK):
                await self._send(data_frame(stream, data))
        except OSError as error:
            return f"port {forwarded.port} of {self._address}: {error}".encode()
        finally:
            await end_all([sending])
            writer.close()
        return b""

    async def _send(self, frame: bytes) -> None:
        with suppress(ConnectionError):  # kubectl went; the loop over its messages ends
            await self._socket.send_bytes(frame)


async def _send_arriving(forwarded: _Forwarded, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # the program in the pod closed it, which the reader sees
        while data := await forwarded.arriving.get():
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
