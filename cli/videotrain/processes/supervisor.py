"""Runs one command and answers for everything that it starts: when this process ends, none of it is left.

Started by path with `python -I -S`, so only the standard library is used. It is the reaper of all its descendants
(prctl), which means that no process can leave its tree, whoever its parent was. Its standard input is a pipe from the
process that started it: a line `term` sends SIGTERM to the command, `kill` kills the tree, and the end of the pipe,
which also comes when the starter is killed, kills the tree too. It tells on standard output, one JSON object per line,
that the command was started and how it ended, and writes the latter into a file as well.

    supervisor.py EXIT_FILE LOG_FILE COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
NOT_STARTED = 128
"""Exit code of a command that could not be started, as container runtimes report it."""


def main(arguments: list[str]) -> int:
    """Run the command; the result is its exit code, 128 + n after signal n."""
    exit_file, log_file, *command = arguments
    _become_reaper()
    wake, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    stop_signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    received: list[int] = []
    for number in (*stop_signals, signal.SIGCHLD):
        signal.signal(number, lambda number, _: received.append(number))
    started_at, memory_kills = _now(), _memory_kills()
    try:
        child = _start(command, log_file)
    except OSError as error:
        return _finish(exit_file, NOT_STARTED, started_at, "StartError", f"{command[0]}: {error.strerror}")
    _tell({"event": "started", "pid": child.pid, "startedAt": started_at})
    stopped = _until_end(child, wake, lambda: any(number in stop_signals for number in received))
    code = _kill_tree(child)
    return _finish(exit_file, code, started_at, _reason(code, stopped, memory_kills), "")


def _become_reaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _start(command: list[str], log_file: str) -> subprocess.Popen[bytes]:
    with Path(log_file).open("ab") as log:
        # A session of its own: a Ctrl-C at the terminal must reach videotrain only.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _until_end(child: subprocess.Popen[bytes], wake: int, interrupted: Any) -> str | None:
    """Serve the pipe until the command has ended or the tree is to be killed.

    Returns:
        The strongest thing that was asked: None, `term` or `kill`.
    """
    asked, pending = None, b""
    while not _reap(child) and child.returncode is None:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        if interrupted():
            return "kill"
        if 0 not in ready:
            continue
        data = os.read(0, 4096)
        pending += data
        *lines, pending = pending.split(b"\n")
        if not data or b"kill" in lines:
            return "kill"
        if b"term" in lines:
            asked = "term"
            child.send_signal(signal.SIGTERM)
    return asked


def _kill_tree(child: subprocess.Popen[bytes]) -> int:
    """Kill and reap until no descendant is left; children of the dead become ours, so none is missed."""
    pause = 0.001
    while True:
        for pid in _descendants(os.getpid()):
            _kill(pid)
        if _reap(child):
            break
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    code = child.returncode
    return 128 - code if code < 0 else code


def _reap(child: subprocess.Popen[bytes]) -> bool:
    """Collect the dead: the command, and the orphans that became our children.

    Returns:
        Whether no child is left at all.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself meanwhile; its pid cannot be reused before we have reaped it or its parent has


def _descendants(root: int) -> list[int]:
    """Process ids of the whole tree below root, from one look at /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 (pathlib would double the cost of a look)
        if entry.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry))
    found, front = [], [root]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            # The command name may contain spaces and brackets: fields start after the last bracket.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _memory_kills() -> int:
    """How many processes this kernel has killed for memory."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _reason(code: int, asked: str | None, memory_kills: int) -> str:
    if code == 0:
        return "Completed"
    if code == 128 + signal.SIGKILL and asked is None and _memory_kills() > memory_kills:
        return "OOMKilled"
    return "Killed" if asked == "kill" else "Error"


def _finish(exit_file: str, code: int, started_at: str, reason: str, message: str) -> int:
    ending = {"exitCode": code, "startedAt": started_at, "finishedAt": _now(), "reason": reason, "message": message}
    path = Path(exit_file)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(ending))
        partial.replace(path)
    except OSError as error:
        ending["message"] = f"{message} ({path} could not be written: {error.strerror})".strip()
    _tell({"event": "ended", **ending})
    return code


def _tell(message: dict[str, Any]) -> None:
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        return  # the starter is gone; the exit file is what remains


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
