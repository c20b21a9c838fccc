"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PROFILE_REQUEST: Final = "profile-request"
"""In a working directory: the wish for a trace, until the session that runs there has put it on the run."""


def replace_file(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new one, whatever ends this process.

    Not for two writers at once, and not synced to the disk: after a power cut the old content may be there.

    Args:
        path: in a directory that exists.
        content: text is written as UTF-8.
        private: only the owner may read it.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed, with permissions of its own
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666)
    with os.fdopen(handle, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside a file for what somebody else writes; it becomes the file if the block ends well.

    Not for two writers at once.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # which a link to the same file would be, too
