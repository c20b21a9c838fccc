"""What the workers of a generation print: passed on line by line, and the end of it kept in memory."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

KEPT_BYTES: Final = 32 << 10
"""Of each worker's output, the end."""
LONGEST_LINE: Final = 64 << 10
"""A longer one is passed on in pieces, with which lines of other workers may be mixed."""
PIPE_BYTES: Final = 1 << 20
"""So much may wait in a pipe before the worker that prints has to wait; less where the system allows no more."""

log = logging.getLogger(__name__)


class WorkerOutput:
    """Pipes with names into which workers print, the output of native code with it.

    A worker opens its pipe for reading, too (`worker.main`), so that it meets no broken pipe whatever becomes of the
    agent.

    Args:
        paths: of the pipes, by local rank; made anew.
        target: descriptor to pass everything on to.

    Raises:
        OSError: the file system has no such pipes.
    """

    def __init__(self, paths: Sequence[Path], target: int = 2) -> None:
        self._paths, self._target = paths, target
        self._ends = [bytearray() for _ in paths]
        self._begun = [b"" for _ in paths]
        """The last line of each, as long as it has no end."""
        self._lock = threading.Lock()
        self._stop_reader, self._stop = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stop_reader, selectors.EVENT_READ, None)
        self._pipes: list[int] = []
        for rank, path in enumerate(paths):
            path.unlink(missing_ok=True)
            os.mkfifo(path)
            self._pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            with contextlib.suppress(OSError):  # the user has no pages left for pipes; it stays small
                fcntl.fcntl(self._pipes[rank], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self._selector.register(self._pipes[rank], selectors.EVENT_READ, rank)
        self._thread = threading.Thread(target=self._work, name="worker-output", daemon=True)
        self._thread.start()

    def tail(self, local_rank: int) -> bytes:
        """The end of what a worker has printed, from the beginning of a line where that is known."""
        with self._lock:
            kept = bytes(self._ends[local_rank])
        if len(kept) < KEPT_BYTES:
            return kept
        return kept[-KEPT_BYTES:].partition(b"\n")[2] or kept[-KEPT_BYTES:]

    def close(self) -> None:
        """Pass on what is left and remove the pipes; the tails stay. Workers must be gone."""
        os.write(self._stop, b".")
        self._thread.join()
        for descriptor in (*self._pipes, self._stop, self._stop_reader):
            os.close(descriptor)
        self._selector.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _work(self) -> None:
        stopping = False
        while not stopping:
            ready = self._selector.select()
            stopping = any(key.data is None for key, _ in ready)
            for rank in range(len(self._paths)) if stopping else [key.data for key, _ in ready]:
                while self._read(rank) and stopping:
                    pass
        for begun in self._begun:
            if begun:
                self._pass_on(begun + b"\n")

    def _read(self, rank: int) -> bool:
        """Whether there was something."""
        try:
            found = os.read(self._pipes[rank], LONGEST_LINE)
        except BlockingIOError:
            return False
        with self._lock:
            end = self._ends[rank]
            end += found
            del end[: max(0, len(end) - KEPT_BYTES)]
        lines, newline, rest = (self._begun[rank] + found).rpartition(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, newline, rest = lines + newline + rest, b"\n", b""
        self._begun[rank] = rest
        self._pass_on(lines + newline)
        return True

    def _pass_on(self, data: bytes) -> None:
        left = memoryview(data)
        with contextlib.suppress(OSError):  # nobody listens any more; a worker must not wait for that
            while left:
                left = left[os.write(self._target, left) :]
