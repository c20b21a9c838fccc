"""Forwarded ports over a real WebSocket; `kubectl` itself asks for them in tests/cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, web
from support.spdy_client import Client

from videotrain.kubelet import port_forward
from videotrain.kubelet.port_forward import PROTOCOL, Forwarding
from videotrain.kubelet.spdy import data_frame, reset_frame


@asynccontextmanager
async def forwarding() -> AsyncIterator[tuple[ClientWebSocketResponse, list[Forwarding]]]:
    made: list[Forwarding] = []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(PROTOCOL,))
        await socket.prepare(request)
        made.append(Forwarding(socket, "127.0.0.1"))
        await made[-1].run()
        return socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ClientSession() as session:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            async with session.ws_connect(url, protocols=(PROTOCOL,)) as socket:
                yield socket, made
    finally:
        await runner.cleanup()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.close()


async def until(socket: ClientWebSocketResponse, frame: bytes) -> list[bytes]:
    frames = []
    while frame not in frames:
        frames.append(await socket.receive_bytes())
    return frames


async def test_connections_that_are_over_are_forgotten() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port, client = str(server.sockets[0].getsockname()[1]), Client()
    async with asyncio.timeout(60), server, forwarding() as (socket, made):
        for number in range(3):
            error, data = 4 * number + 1, 4 * number + 3
            await socket.send_bytes(client.open(error, streamtype="error", port=port, requestid=str(number)))
            await socket.send_bytes(client.open(data, streamtype="data", port=port, requestid=str(number)))
            await socket.send_bytes(data_frame(data, b"hello") + data_frame(data, b"", last=True))
            frames = await until(socket, data_frame(error, b"", last=True))
            assert data_frame(data, b"hello") in frames
        while made[0]._data or made[0]._error_streams:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("port", ["0", "65536", "99999999999", "http"])
async def test_what_is_no_port_is_refused(port: str) -> None:
    client = Client()
    async with asyncio.timeout(60), forwarding() as (socket, made):
        await socket.send_bytes(client.open(1, streamtype="error", port=port, requestid="0"))
        await socket.send_bytes(client.open(3, streamtype="data", port=port, requestid="0"))
        await until(socket, reset_frame(3))
        assert (made[0]._data, made[0]._error_streams) == ({}, {})


async def test_more_connections_than_there_may_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_forward, "MOST_CONNECTIONS", 2)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port, client = str(server.sockets[0].getsockname()[1]), Client()
    async with asyncio.timeout(60), server, forwarding() as (socket, made):
        for number in (1, 3, 5):
            await socket.send_bytes(client.open(number, streamtype="data", port=port, requestid=str(number)))
        await until(socket, reset_frame(5))
        assert sorted(made[0]._data) == [1, 3]
