"""One program of the control plane under its supervisor, as blocking calls.

The supervisor holds a pipe to this process: when the pipe ends, and it does when we are killed, the program ends too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from videotrain.controlplane.errors import ComponentEnded, ControlPlaneError
from videotrain.processes import supervisor
from videotrain.processes.leftovers import end_leftovers
from videotrain_api.vocabulary import ENV_POD_ROOT

END_SECONDS: Final = 30.0
_TAIL_LINES: Final = 12


class Component:
    """A program that runs until it is killed; none of its processes outlives this Python process."""

    def __init__(self, name: str, folder: Path, log: Path) -> None:
        self.name = name
        self.folder = folder
        """Its working directory, which also marks its processes."""
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the program; None if it does not run."""
        return self._pid if self.running else None

    @property
    def running(self) -> bool:
        """Whether it runs, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the program; nothing happens if it runs.

        Raises:
            ControlPlaneError: it cannot be started.
        """
        if self.running:
            return
        self.kill()  # what it left if it ended by itself
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["-I", "-S", supervisor.__file__, str(self.folder / "exit.json"), str(self.log), *command]
        with self.log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={**environment, ENV_POD_ROOT: str(self.folder)}, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        told = json.loads(line) if line else {"message": "its supervisor ended"}
        if told.get("event") != "started":
            self.kill()
            raise ControlPlaneError(f"{self.name} cannot be started: {told.get('message')}")
        self._pid = int(told["pid"])

    def kill(self) -> None:
        """Kill the program and everything that it started, and wait until all is gone."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # the end of this pipe is the order to kill
        try:
            lost = process.wait(END_SECONDS) < 0
        except subprocess.TimeoutExpired:
            process.kill()
            lost = process.wait() < 0
        if lost:  # the supervisor was killed itself, and could not take the program along
            end_leftovers(self.folder, 0.0)
        if process.stdout is not None:
            process.stdout.close()
        self._process = self._pid = None

    def pause(self) -> None:
        """Stop the program without ending it: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused program go on."""
        self._signal(signal.SIGCONT)

    def check(self) -> None:
        """Raise if the program has ended by itself.

        Raises:
            ComponentEnded: it has; the message holds the end of its log.
        """
        if not self.running:
            raise ComponentEnded(f"{self.name} ended by itself; the end of {self.log}:\n{self.tail()}")

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.is_file() else ""

    def _signal(self, number: int) -> None:
        pid = self.pid
        if pid is None:
            raise ControlPlaneError(f"{self.name} does not run")
        os.kill(pid, number)
