"""`kubectl exec` and `kubectl cp`: a command beside a container's, its streams as channels of a WebSocket."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import WSMsgType, web

from videotrain.tasks import end_all

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_CHUNK: Final = 32 * 1024


class Surrounding(NamedTuple):
    """What a container's command was started with."""

    env: Mapping[str, str]
    cwd: Path


class ExecSession:
    """One command."""

    def __init__(
        self, socket: web.WebSocketResponse, command: Sequence[str], around: Surrounding, *, tty: bool
    ) -> None:
        self._socket, self._command, self._around, self._tty = socket, command, around, tty
        self._terminal = self._inner = -1

    async def run(self, *, takes_input: bool) -> None:
        """Run it and tell how it ended; kill it with all that it started when kubectl goes.

        Args:
            takes_input: kubectl sends standard input; else it is empty.
        """
        try:
            process = await self._start(takes_input=takes_input)
        except OSError as error:
            await self._send(_STDERR, f"{self._command[0]}: {error.strerror}\n".encode())
            await self._tell_end(126)
            return
        reading, outputs = asyncio.create_task(self._take(process)), self._outputs(process)
        over = asyncio.create_task(_finished(process, outputs, tty=self._tty))
        try:
            await asyncio.wait({over, reading}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                await self._tell_end(over.result())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await end_all([reading, over, *outputs])
            if self._tty:
                os.close(self._terminal)

    async def _start(self, *, takes_input: bool) -> asyncio.subprocess.Process:
        streams: tuple[int, int, int] = (
            asyncio.subprocess.PIPE if takes_input else asyncio.subprocess.DEVNULL,
            asyncio.subprocess.PIPE,
            asyncio.subprocess.PIPE,
        )
        if self._tty:
            self._terminal, self._inner = pty.openpty()
            streams = (self._inner, self._inner, self._inner)
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=streams[0], stdout=streams[1], stderr=streams[2],
                env=self._around.env, cwd=self._around.cwd, start_new_session=True,
            )  # fmt: skip
        except OSError:
            if self._tty:
                os.close(self._terminal)
            raise
        finally:
            if self._tty:
                os.close(self._inner)

    def _outputs(self, process: asyncio.subprocess.Process) -> list[asyncio.Task[None]]:
        if self._tty:
            return [asyncio.create_task(self._send_terminal())]
        assert process.stdout is not None
        assert process.stderr is not None
        pairs = ((_STDOUT, process.stdout), (_STDERR, process.stderr))
        return [asyncio.create_task(self._send_stream(channel, stream)) for channel, stream in pairs]

    async def _send_stream(self, channel: int, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_CHUNK):
            await self._send(channel, data)

    async def _send_terminal(self) -> None:
        while True:
            try:
                data = await asyncio.to_thread(os.read, self._terminal, _CHUNK)
            except OSError:  # the last program on the terminal has gone
                return
            if not data:
                return
            await self._send(_STDOUT, data)

    async def _take(self, process: asyncio.subprocess.Process) -> None:
        """What kubectl sends, until it goes."""
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == _STDIN and self._tty:
                await asyncio.to_thread(os.write, self._terminal, data)
            elif channel == _STDIN and process.stdin is not None:
                with suppress(OSError):  # it closed its input, or ended
                    process.stdin.write(data)
                    await process.stdin.drain()
            elif channel == _RESIZE and self._tty:
                size = json.loads(data)
                termios.tcsetwinsize(self._terminal, (size["Height"], size["Width"]))
            elif channel == _CLOSE and data[:1] == bytes([_STDIN]) and process.stdin is not None:
                process.stdin.close()

    async def _send(self, channel: int, data: bytes) -> None:
        with suppress(ConnectionError):  # kubectl went; the loop over its messages ends
            await self._socket.send_bytes(bytes([channel]) + data)

    async def _tell_end(self, code: int) -> None:
        status: dict[str, object] = {"metadata": {}, "status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            told = f"command terminated with non-zero exit code: exit status {code}"
            status = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": told}
            status["details"] = {"causes": causes}
        await self._send(_ERROR, json.dumps(status).encode())
        await self._socket.close()


async def _finished(process: asyncio.subprocess.Process, outputs: Sequence[asyncio.Task[None]], *, tty: bool) -> int:
    """Exit code as a shell tells it, once the command and its output have ended."""
    code = await process.wait()
    # What it left in the background may hold the terminal, but a pipe is read to its end, as a kubelet does.
    await asyncio.wait(outputs, timeout=1.0 if tty else None)
    return code if code >= 0 else 128 - code
