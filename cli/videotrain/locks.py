"""Which process holds a directory. The kernel keeps the record, so that it ends with the process whatever ends that."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FILE: Final = "lock"
_RECORD: Final = "hhqqi4x"
"""struct flock: type, whence, start, length, process id."""


class DirectoryError(Exception):
    """A directory cannot be used: another process holds it, it cannot be written, or it holds something else."""


@contextmanager
def held(directory: Path, option: str, work: str, advice: str) -> Iterator[Path]:
    """Hold a directory, made if needed, for this process; yields its absolute path.

    Args:
        directory: to hold.
        option: of the command line, which names the directory; for messages.
        work: what goes on in the directory, such as `a run is going on`; told to whoever wants it meanwhile.
        advice: what to do then.

    Raises:
        DirectoryError: another process holds it, or it cannot be written.
    """
    path = directory.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = _open(path, os.O_CREAT)
    except OSError as error:
        raise DirectoryError(f"{option} {directory}: cannot be written: {explain(error)}") from None
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            told = f"{_work(handle) or work} here (process {_holder(handle)}); {advice}"
            raise DirectoryError(f"{option} {directory}: {told}") from None
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, work.encode(), 0)
        except OSError as error:
            raise DirectoryError(f"{option} {directory}: cannot be written: {explain(error)}") from None
        yield path.resolve()
    finally:
        os.close(handle)


@contextmanager
def awaited(directory: Path) -> Iterator[None]:
    """Hold a directory that is there for this process, once no other process does."""
    handle = _open(directory, os.O_CREAT)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def holder(directory: Path) -> int | None:
    """Process id of the other process that holds a directory; None if there is none."""
    try:
        handle = _open(directory)
    except FileNotFoundError:
        return None
    try:
        return _holder(handle)
    finally:
        os.close(handle)


def held_for(directory: Path) -> str | None:
    """The `work` of the other process that holds a directory; None if there is none."""
    try:
        handle = _open(directory)
    except FileNotFoundError:
        return None
    try:
        return _work(handle) if _holder(handle) is not None else None
    finally:
        os.close(handle)


def explain(error: OSError) -> str:
    """What the kernel said, with what to do about a full disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; free some, or use another directory"
    return error.strerror or str(error)


def _open(directory: Path, flags: int = 0) -> int:
    return os.open(directory / _FILE, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)


def _holder(handle: int) -> int | None:
    wanted = struct.pack(_RECORD, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_RECORD, fcntl.fcntl(handle, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _work(handle: int) -> str:
    return os.pread(handle, 1024, 0).decode(errors="replace")
