"""Process trees: who belongs to a generation, killing them all, and their stacks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from psutil import Process

STACK_SECONDS = 5.0
"""Time to wait for the stacks of one process."""

log = logging.getLogger(__name__)


def members(launcher_pid: int | None, fork_server_pid: int) -> list[Process]:
    """Live processes of the running generation.

    That is the tree below the launcher and, because the agent adopts orphans, every child of the agent that is not the
    fork server, with what is below it. Zombies are reaped where they are ours and do not count.
    """
    found: dict[int, Process] = {}
    roots = [child for child in Process().children() if child.pid != fork_server_pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        roots += [Process(launcher_pid)] if launcher_pid is not None else []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update({process.pid: process for process in (root, *root.children(recursive=True))})
    return [process for process in found.values() if _lives(process)]


def _lives(process: Process) -> bool:
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        if process.ppid() == os.getpid():
            os.waitpid(process.pid, os.WNOHANG)
    except (psutil.NoSuchProcess, ChildProcessError):
        pass  # gone meanwhile, which is what the caller asked
    return False


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL each; stopped ones die too."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def capture_stacks(pid: int, file: Path) -> str:
    """Python stacks of a process, also of one that is stopped or stuck in a collective.

    py-spy reads them from outside without stopping the process; where that is not permitted, the worker's own SIGUSR1
    handler appends them to `file`. Bounded by twice STACK_SECONDS.

    Returns:
        The stacks, or why there are none; they are in `file` as well.
    """
    command = [str(Path(sysconfig.get_path("scripts")) / "py-spy"), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STACK_SECONDS, check=False)
        problem = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        done, problem = None, str(error)
    if done is not None and done.returncode == 0:
        with file.open("a", encoding="utf-8") as out:
            out.write(done.stdout)
        return done.stdout
    log.warning("py-spy could not read process %s: %s", pid, problem)
    return _ask_for_stacks(pid, file) or f"no stacks of process {pid}: {problem}\n"


def _ask_for_stacks(pid: int, file: Path) -> str:
    before = file.stat().st_size if file.exists() else 0

    def answered() -> bool:
        return file.exists() and file.stat().st_size > before

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
        _wait_until(lambda: answered() or not psutil.pid_exists(pid), STACK_SECONDS)
    return file.read_bytes()[before:].decode(errors="replace") if answered() else ""


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
