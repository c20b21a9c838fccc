"""Which process holds a directory. The kernel keeps the record, so that it ends with the process whatever ends that."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from videotrain.controlplane.errors import ControlPlaneError

_FILE: Final = "lock"
_RECORD: Final = "hhqqi4x"
"""struct flock: type, whence, start, length, process id."""


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory, made if needed, for this process.

    Raises:
        ControlPlaneError: another process holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ControlPlaneError(f"--directory {directory}: cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ControlPlaneError(
                f"--directory {directory}: a cluster runs here (process {_holder(handle)}); end it with `videotrain "
                f"cluster down --directory {directory}`, or use another directory"
            ) from None
        yield
    finally:
        os.close(handle)


def holder(directory: Path) -> int | None:
    """Process id of the other process that holds a directory; None if there is none."""
    try:
        handle = os.open(directory / _FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _holder(handle)
    finally:
        os.close(handle)


def _holder(handle: int) -> int | None:
    wanted = struct.pack(_RECORD, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_RECORD, fcntl.fcntl(handle, fcntl.F_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else int(pid)
