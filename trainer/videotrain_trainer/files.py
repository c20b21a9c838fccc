"""Places on this machine, and files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote


def local_path(source: str) -> Path:
    """The file or folder that a path or a `file://` URI means; the escapes of a URI are resolved, a path has none."""
    return Path(unquote(source.removeprefix("file://")) if source.startswith("file://") else source)


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end; on an error it goes and `path` stays as it was.

    Not synced to the disk. What a killed process left is overwritten by the next that writes the same file.

    Args:
        path: a file in a folder that exists, or a folder that does not exist at the end.
        shared: several processes or threads may write it at once, and the last one wins; a killed one's part stays.
    """
    writer = f"{os.getpid()}-{threading.get_ident()}-" if shared else ""
    partial = path.with_name(f".partial-{writer}{path.name}")
    try:
        remove(partial)
        yield partial
        partial.replace(path)
    finally:
        remove(partial)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file its name that other processes have completed; see `replacing` for one that is written here."""
    partial.replace(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all below it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
