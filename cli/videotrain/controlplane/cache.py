"""The user's cache of programs that are too large to build or fetch twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videotrain.controlplane.errors import ControlPlaneError


def cache_folder(*parts: str) -> Path:
    """A folder of the cache (XDG_CACHE_HOME, else ~/.cache), made if needed.

    Raises:
        ControlPlaneError: it cannot be written.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache").joinpath("videotrain", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ControlPlaneError(
            f"the cache folder {folder} cannot be made: {error.strerror}; set XDG_CACHE_HOME to a folder that can be "
            "written"
        ) from None
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder of the cache for this process; waits for other holders. The kernel frees it when we end."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
