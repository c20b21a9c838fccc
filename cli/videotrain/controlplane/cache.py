"""The user's cache of programs that are too large to build or fetch twice."""

from __future__ import annotations

import os
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
