"""Log lines go to a file where the terminal belongs to a picture."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LogFile(logging.FileHandler):
    """Appends to a file. A line that the disk does not take is counted, not told on the terminal with a trace each."""

    lost = 0
    """Lines that could not be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count what the disk refused; anything else is a mistake of ours, which logging shows."""
        if isinstance(sys.exception(), OSError):
            self.lost += 1
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file; what is still held back may be lost, too."""
        try:
            super().close()
        except OSError:
            self.lost += 1


def open_log(path: Path) -> LogFile:
    """A handler that appends to a file; its folder is made.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[None]:
    """Everything from INFO on goes there; closes it."""
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
