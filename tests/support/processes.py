"""Processes that belong to a directory, and waiting for things that happen soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

SECONDS = 120.0


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait until a condition holds; fails with `what` if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def processes_below(directory: Path) -> list[psutil.Process]:
    """Live processes that carry a pod root below a directory, as every supervised process does."""
    found = []
    for process in psutil.process_iter():
        try:
            root = process.environ().get("VIDEOTRAIN_POD_ROOT", "")
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if alive and root.startswith(f"{directory}/"):
            found.append(process)
    return found
