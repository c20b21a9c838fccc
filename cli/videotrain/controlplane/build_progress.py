"""How far the build of the control plane is: a bar on a terminal, a line for each tenth elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from videotrain.wording import duration


class BuildProgress:
    """One part of the build, with percent, count and elapsed time. Use as a context manager."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        """Nothing is shown yet.

        Args:
            console: where to tell.
            what: such as `Compiling`.
            total: steps that the part has; 0: not known, or nothing is left to do.
        """
        self._console, self._what, self._total = console, what, total
        self._done = self._told = 0
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
        self._screen = Progress(*columns, TimeElapsedColumn(), console=console)
        self._task = self._screen.add_task(what, total=total or None)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._screen.stop()

    def advance(self) -> bool:
        """One step more is done; always True."""
        self._done += 1
        self._screen.update(self._task, completed=min(self._done, self._total))
        tenth = 10 * self._done // self._total if self._total else 0
        if not self._console.is_terminal and self._told < tenth <= 10:
            self._told = tenth
            passed = duration(time.monotonic() - self._began)
            self._console.print(f"{self._what}: {10 * tenth} % ({self._done} of {self._total}) after {passed}")
        return True
