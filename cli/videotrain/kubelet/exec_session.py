"""`kubectl exec` and `kubectl cp`: a command beside a container's, its streams as channels of a WebSocket."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import termios
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import WSMsgType, web

from videotrain.processes.leftovers import ENV_SESSION, end_session
from videotrain.processes.process import KILLED
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
        self._terminal: _Terminal | None = None
        self._mark = uuid.uuid4().hex

    async def run(self, container_end: Callable[[], Coroutine[Any, Any, object]], *, takes_input: bool) -> None:
        """Run it and tell how it ended; kill it with all that it started when kubectl goes, or the container ends.

        Args:
            container_end: returns when the container has ended.
            takes_input: kubectl sends standard input; else it is empty.
        """
        try:
            process = await self._start(takes_input=takes_input)
        except OSError as error:
            await self._send(_STDERR, f"{self._command[0]}: {error.strerror}\n".encode())
            await self._tell_end(126)
            return
        reading, outputs = asyncio.create_task(self._take(process)), self._outputs(process)
        over = asyncio.create_task(_finished(process, outputs, tty=self._terminal is not None))
        gone = asyncio.create_task(container_end())
        try:
            await asyncio.wait({over, reading, gone}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                await self._tell_end(over.result())
            elif gone.done():
                await self._tell_end(KILLED)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(end_session, self._mark)  # what left the group of processes, too
            await end_all([reading, over, gone, *outputs])
            if self._terminal is not None:
                self._terminal.close()

    async def _start(self, *, takes_input: bool) -> asyncio.subprocess.Process:
        streams: tuple[int, int, int] = (
            asyncio.subprocess.PIPE if takes_input else asyncio.subprocess.DEVNULL,
            asyncio.subprocess.PIPE,
            asyncio.subprocess.PIPE,
        )
        if self._tty:
            self._terminal, inner = await _Terminal.open()
            streams = (inner, inner, inner)
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=streams[0], stdout=streams[1], stderr=streams[2],
                env={**self._around.env, ENV_SESSION: self._mark}, cwd=self._around.cwd, start_new_session=True,
            )  # fmt: skip
        except OSError:
            if self._terminal is not None:
                self._terminal.close()
            raise
        finally:
            if self._tty:
                os.close(streams[0])

    def _outputs(self, process: asyncio.subprocess.Process) -> list[asyncio.Task[None]]:
        if self._terminal is not None:
            return [asyncio.create_task(self._send_terminal(self._terminal.reader))]
        assert process.stdout is not None
        assert process.stderr is not None
        pairs = ((_STDOUT, process.stdout), (_STDERR, process.stderr))
        return [asyncio.create_task(self._send_stream(channel, stream)) for channel, stream in pairs]

    async def _send_stream(self, channel: int, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(_CHUNK):
            await self._send(channel, data)

    async def _send_terminal(self, stream: asyncio.StreamReader) -> None:
        with suppress(OSError):  # how the kernel tells that the last program on the terminal has gone
            await self._send_stream(_STDOUT, stream)

    async def _take(self, process: asyncio.subprocess.Process) -> None:
        """What kubectl sends, until it goes."""
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            to = self._terminal.writer if self._terminal is not None else process.stdin
            if channel == _STDIN and to is not None:
                with suppress(OSError):  # it closed its input, or ended
                    to.write(data)
                    await to.drain()
            elif channel == _RESIZE and self._terminal is not None:
                self._terminal.resize(data)
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


class _Terminal:
    """The outer side of a pseudo-terminal. Nothing of it waits in a thread, of which all sessions share a few."""

    def __init__(
        self, handle: int, reading: asyncio.BaseTransport, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._handle, self._reading, self.reader, self.writer = handle, reading, reader, writer

    @classmethod
    async def open(cls) -> tuple[_Terminal, int]:
        """A new one, and its inner side, which is the caller's to close."""
        loop = asyncio.get_running_loop()
        handle, inner = pty.openpty()
        reader = asyncio.StreamReader()
        # Each with a handle of its own, which it closes.
        source, sink = (os.fdopen(os.dup(handle), mode, 0) for mode in ("rb", "wb"))
        reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
        writing, flow = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), sink
        )
        return cls(handle, reading, reader, asyncio.StreamWriter(writing, flow, None, loop)), inner

    def resize(self, told: bytes) -> None:
        """Take the size that kubectl tells, if it is one."""
        with suppress(ValueError, KeyError, TypeError, OverflowError, termios.error):
            size = json.loads(told)
            termios.tcsetwinsize(self._handle, (size["Height"], size["Width"]))

    def close(self) -> None:
        """Close the outer side; programs that are left on it are hung up."""
        self._reading.close()
        self.writer.transport.abort()
        os.close(self._handle)


async def _finished(process: asyncio.subprocess.Process, outputs: Sequence[asyncio.Task[None]], *, tty: bool) -> int:
    """Exit code as a shell tells it, once the command and its output have ended."""
    code = await process.wait()
    # What it left in the background may hold the terminal, but a pipe is read to its end, as a kubelet does.
    await asyncio.wait(outputs, timeout=1.0 if tty else None)
    return code if code >= 0 else 128 - code
