"""A progress bar on standard error: of the scenarios, and of what the present one waits for."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """Shown where standard error is a terminal. Use it as a context manager."""

    def __init__(self, scenarios: int) -> None:
        columns = (TextColumn("{task.description:<48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._all: TaskID = self._bar.add_task("scenarios", total=scenarios)
        self._now: TaskID = self._bar.add_task("", total=None)
        self._scenario = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, scenario: str) -> None:
        """A scenario begins."""
        self._scenario = scenario
        self._bar.reset(self._now, description=scenario, total=None)

    def show(self, what: str, done: int, wanted: int) -> None:
        """What is waited for."""
        self._bar.update(self._now, description=f"{self._scenario}: {what}", completed=done, total=wanted)

    def end(self) -> None:
        """A scenario is done."""
        self._bar.advance(self._all)
