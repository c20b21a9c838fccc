"""Commands beside a container's, over a real WebSocket; `kubectl` itself asks for them in tests/cluster."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, web

from videotrain.kubelet.exec_session import PROTOCOLS, ExecSession, Surrounding
from videotrain_api.vocabulary import ENV_POD_ROOT

Open = Callable[..., Any]
STDIN, STDOUT, ERROR, RESIZE = b"\0", b"\1", b"\3", b"\4"


@pytest.fixture
def container_end() -> asyncio.Event:
    return asyncio.Event()


@asynccontextmanager
async def sessions(folder: Path, container_end: asyncio.Event) -> AsyncIterator[Open]:
    """Opens a session for a command."""
    around = Surrounding({"PATH": os.environ["PATH"], ENV_POD_ROOT: str(folder)}, folder)

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=PROTOCOLS)
        await socket.prepare(request)
        session = ExecSession(socket, request.query.getall("command"), around, tty="tty" in request.query)
        await session.run(container_end.wait, takes_input=True)
        return socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:

            async def open_(*command: str, tty: bool = False) -> ClientWebSocketResponse:
                query = [("command", word) for word in command] + [("tty", "1")] * tty
                return await client.ws_connect("/", params=query, protocols=PROTOCOLS)

            yield open_
    finally:
        await runner.cleanup()


async def until_shown(socket: ClientWebSocketResponse, text: bytes) -> bytes:
    shown = b""
    while text not in shown:
        data = await socket.receive_bytes()
        assert data[:1] == STDOUT, data
        shown += data[1:]
    return shown


async def test_more_terminals_than_there_are_threads_leave_threads_for_others(
    tmp_path: Path, container_end: asyncio.Event
) -> None:
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        async with asyncio.timeout(60), sessions(tmp_path, container_end) as open_:
            sockets = [await open_("cat", tty=True) for _ in range(3)]
            for socket in sockets:
                await socket.send_bytes(STDIN + b"through the terminal\n")
                await until_shown(socket, b"through the terminal\r\n")
            assert await asyncio.to_thread(lambda: "free") == "free"
            container_end.set()


async def test_much_input_is_written_whole_and_a_size_that_is_none_is_left_out(
    tmp_path: Path, container_end: asyncio.Event
) -> None:
    lines = b"".join(b"%07d\n" % number for number in range(30_000))
    async with asyncio.timeout(60), sessions(tmp_path, container_end) as open_:
        program = "stty -echo; echo began; read x; head -n 30000 > taken; stty size; sleep 1000"
        socket = await open_("sh", "-c", program, tty=True)
        await until_shown(socket, b"began\r\n")
        for told in (
            b"{",
            b"[]",
            b'{"Height": 1}',
            b'{"Height": "x", "Width": 2}',
            b'{"Height": -1, "Width": 99999999}',
        ):
            await socket.send_bytes(RESIZE + told)
        await socket.send_bytes(RESIZE + json.dumps({"Height": 33, "Width": 44}).encode())
        await socket.send_bytes(STDIN + b"go\n")
        await socket.send_bytes(STDIN + lines)
        await until_shown(socket, b"33 44\r\n")
        container_end.set()
    assert (tmp_path / "taken").read_bytes() == lines


def left(folder: Path) -> list[list[str]]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ENV_POD_ROOT) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("ender", ["the container", "kubectl", "the command"])
async def test_what_left_the_session_of_the_kernel_ends_with(
    ender: str, tmp_path: Path, container_end: asyncio.Event
) -> None:
    program = "setsid sleep 1000 > /dev/null 2>&1 & echo began; read go"
    async with asyncio.timeout(60), sessions(tmp_path, container_end) as open_:
        socket = await open_("sh", "-c", program)
        await until_shown(socket, b"began\n")
        assert left(tmp_path)
        if ender == "the container":
            container_end.set()
            told = await socket.receive_bytes()
            assert (told[:1], json.loads(told[1:])["details"]["causes"][0]["message"]) == (ERROR, "137")
        elif ender == "kubectl":
            await socket.close()
        else:
            await socket.send_bytes(STDIN + b"\n")
        while left(tmp_path):
            await asyncio.sleep(0.01)
