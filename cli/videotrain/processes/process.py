"""A command under its supervisor, as the node sees it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videotrain.clock import utc_now
from videotrain.processes import supervisor

KILLED = 137


class Ending(NamedTuple):
    """How a command ended."""

    exit_code: int
    """128 + n after signal n."""
    started_at: str
    finished_at: str
    """When the last process of its tree was gone, RFC 3339."""
    reason: str
    """Completed, Error, OOMKilled, Killed (on request), StartError or SupervisorLost."""
    message: str = ""


class SupervisedProcess:
    """One command and all its descendants; none of them outlives this Python process."""

    def __init__(self, process: asyncio.subprocess.Process, started_at: str) -> None:
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self.started_at = started_at
        """When the command was started, RFC 3339."""
        self.pid: int | None = None
        """Process id of the command; None if it could not be started."""
        self.supervisor_pid = process.pid
        self._ending: asyncio.Task[Ending] | None = None

    @classmethod
    async def start(
        cls, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, exit_file: Path
    ) -> SupervisedProcess:
        """Start a command.

        Args:
            command: program (looked up on env's PATH) and arguments.
            env: its whole environment.
            cwd: its working directory.
            log: file to which its output is appended.
            exit_file: where its ending is written, also after this process is gone.

        Raises:
            OSError: the log cannot be opened, or no process can be started.
        """
        exit_file.unlink(missing_ok=True)
        arguments = ["-I", "-S", supervisor.__file__, str(exit_file), str(log), *command]
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=errors, env=env, cwd=cwd, start_new_session=True,
            )  # fmt: skip
        self = cls(process, utc_now())
        first = await self._message()
        if first.get("event") == "started":
            self.pid, self.started_at = first["pid"], first["startedAt"]
            first = {}
        self._ending = asyncio.create_task(self._collect(first))
        return self

    def terminate(self) -> None:
        """Send SIGTERM to the command itself."""
        self._ask(b"term\n")

    def kill(self) -> None:
        """Kill the command and all its descendants."""
        self._ask(b"kill\n")

    async def wait(self) -> Ending:
        """Wait until the whole tree is gone."""
        assert self._ending is not None
        return await asyncio.shield(self._ending)

    def _ask(self, line: bytes) -> None:
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(line)

    async def _message(self) -> dict[str, Any]:
        assert self._stdout is not None
        line = await self._stdout.readline()
        return dict(json.loads(line)) if line else {}

    async def _collect(self, message: dict[str, Any]) -> Ending:
        ended = message or await self._message()
        await self._process.wait()
        if self._stdin is not None:
            self._stdin.close()
        if not ended:
            text = f"the supervisor of {self.pid} was killed"
            return Ending(KILLED, self.started_at, utc_now(), "SupervisorLost", text)
        return _ending(ended)


def read_ending(exit_file: Path) -> Ending | None:
    """What a supervisor wrote about its command; None if it wrote nothing."""
    if not exit_file.is_file():
        return None
    return _ending(json.loads(exit_file.read_text()))


def _ending(data: Mapping[str, Any]) -> Ending:
    return Ending(data["exitCode"], data["startedAt"], data["finishedAt"], data["reason"], data.get("message", ""))
