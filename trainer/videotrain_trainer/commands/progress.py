"""A progress bar on standard error: one line that is redrawn on a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 32
REDRAW_SECONDS = 0.1


class ProgressBar:
    """Shows how many bytes of a known number are done.

    Args:
        title: what is done.
        stream: where it is shown.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title, self._stream = title, stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._began, self._shown, self._tenth = time.monotonic(), 0.0, 0

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done."""
        now, ends = time.monotonic(), done >= total
        if self._terminal and (ends or now - self._shown >= REDRAW_SECONDS):
            self._shown = now
            self._stream.write("\r" + self._line(done, total, now) + ("\n" if ends else ""))
        tenth = 10 * done // max(total, 1)
        if not self._terminal and tenth > self._tenth:
            self._tenth = tenth
            self._stream.write(self._line(done, total, now) + "\n")
        self._stream.flush()

    def _line(self, done: int, total: int, now: float) -> str:
        share = done / max(total, 1)
        full = round(share * WIDTH)
        seconds = max(now - self._began, 1e-9)
        left = seconds * (1 - share) / max(share, 1e-9)
        bar = "#" * full + "-" * (WIDTH - full)
        return (
            f"{self._title} [{bar}] {share:4.0%} {human_bytes(done)} of {human_bytes(total)}, "
            f"{human_bytes(done / seconds)}/s, {left:.0f} s left"
        )


def human_bytes(count: float) -> str:
    """Such as `1.5 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
