"""CPU and memory of the components, from /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads, without its children.

    Raises:
        OSError: there is no such process.
    """
    return parse_cpu(Path(f"/proc/{pid}/stat").read_text())


def parse_cpu(stat: str) -> float:
    """The same, from the text of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid: int) -> dict[str, float]:
    """Resident set and its peak since the process began, MiB.

    Raises:
        OSError: there is no such process.
    """
    return parse_memory(Path(f"/proc/{pid}/status").read_text())


def parse_memory(status: str) -> dict[str, float]:
    """The same, from the text of /proc/PID/status."""
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return {"rssMiB": round(int(found["VmRSS"]) / MIB, 1), "peakRssMiB": round(int(found["VmHWM"]) / MIB, 1)}


class Window:
    """A stretch of time and the CPU that was used in it."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Begin now; `read` gives the CPU seconds so far by component."""
        self._read = read
        self._before = dict(read())
        self.began = time.monotonic()
        self.began_at = datetime.now(UTC)
        self.seconds = 0.0
        self.ended_at = self.began_at
        self.cpu: dict[str, float] = {}

    def since(self, moment: float | None) -> float | None:
        """Seconds from the beginning to a monotonic time."""
        return None if moment is None else moment - self.began

    def close(self) -> Window:
        """End now, or later again."""
        self.seconds, self.ended_at = time.monotonic() - self.began, datetime.now(UTC)
        self.cpu = {name: used - self._before.get(name, 0.0) for name, used in self._read().items()}
        return self
