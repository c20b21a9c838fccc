"""What Linux offers and Python does not: process controls (prctl(2)), and what the kernel tells about GPUs."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Final

MOST_FILES: Final = 1 << 20
"""Programs that look at every possible descriptor take too long with more."""
_SET_PARENT_DEATH_SIGNAL = 1
_SET_NAME = 15
_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, argument: int | ctypes.c_char_p) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however that happens.

    Args:
        parent: Process id of the parent; if it is gone already, this process ends here.
    """
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def name_process(name: str) -> None:
    """Name shown by `ps` and `top`; at most 15 bytes are kept."""
    _prctl(_SET_NAME, ctypes.c_char_p(name.encode()))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, as process 1 of a container is by itself."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def raise_file_limit() -> None:
    """Let this process and its children open as many files as it may, at most MOST_FILES.

    The leader of a world holds three sockets for each worker of the others, and the usual limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def container_cpus(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this container may use at a time, at least one; those of this process where nothing limits it."""
    found = len(os.sched_getaffinity(0))
    new, old = groups / "cpu.max", groups / "cpu" / "cpu.cfs_quota_us"
    if new.is_file():
        quota, period = new.read_text().split()
    elif old.is_file():
        quota, period = old.read_text().strip(), (old.parent / "cpu.cfs_period_us").read_text().strip()
    else:
        return found
    return max(1, min(found, int(quota) // int(period))) if quota.isdigit() else found


def gpu_kinds(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Kinds of the GPUs that this pod has, as their driver names them, each once; empty without NVIDIA's driver.

    Args:
        folder: of the driver, with a folder per GPU.
    """
    lines = [line for file in folder.glob("*/information") for line in file.read_text().splitlines()]
    return sorted({line.removeprefix("Model:").strip() for line in lines if line.startswith("Model:")})


def give_back_memory() -> None:
    """Let the C library return to the system what was freed; where it is not glibc, nothing happens.

    glibc keeps for each thread what that thread has freed: 0.1 GB of each rank after a start by several readers.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
