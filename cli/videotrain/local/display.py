"""Progress of a local run: a live screen on a terminal, one line per change elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from videotrain.local.screen import cost_table, render_screen, work_units
from videotrain.wording import GPU_NOTE
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_operator.planner.observed import Observed

EVENTS_SHOWN = 6
STEP_LINES = 20
"""A stage tells its steps in about so many lines where there is no screen."""


class DisplayOptions(Protocol):
    """What a display needs to know of the command line."""

    @property
    def json(self) -> bool:
        """JSON lines instead of text."""


class Display(Protocol):
    """Where a local run tells how it gets on. Use as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing; the last state stays visible."""

    def update(self, run: Json, observed: Observed | None = None) -> None:
        """Show the run's newest state."""

    def event(self, text: str) -> None:
        """Tell one thing that happened."""

    def result(self, run: Json, files: Mapping[str, Path]) -> None:
        """Tell the bill and where things are (`report`, `summary`, `samples`); call it after the end."""


def make_display(options: DisplayOptions) -> Display:
    """The display that fits standard output: JSON lines, a live screen on a terminal, else lines of text."""
    if options.json:
        return JsonDisplay(sys.stdout)
    console = Console()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stdout)


def _now() -> datetime:
    return datetime.now(UTC)


class LiveDisplay:
    """A screen that is drawn again four times a second."""

    def __init__(self, console: Console, clock: Callable[[], datetime] = _now) -> None:
        self._console, self._clock = console, clock
        self._run: Json | None = None
        self._observed: Observed | None = None
        self._events: deque[tuple[datetime, str]] = deque(maxlen=EVENTS_SHOWN)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, run: Json, observed: Observed | None = None) -> None:
        """Remember the state for the next drawing."""
        self._run, self._observed = run, observed

    def event(self, text: str) -> None:
        """Add a line to the list of latest events."""
        self._events.append((self._clock(), text))

    def result(self, run: Json, files: Mapping[str, Path]) -> None:
        """Print the bill and where things are."""
        _print_result(self._console, run, files)

    def _render(self) -> RenderableType:
        if self._run is None:
            return Group(Text("starting ..."), *(Text(text) for _, text in self._events))
        alive = [pod.name for pod in self._observed.pods if pod.alive] if self._observed else []
        return render_screen(self._run, alive, list(self._events), self._clock())


class _Changes:
    """Turns a sequence of states into the few sentences that say what changed."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._stages: dict[str, str] = {}
        self._generation = 0
        self._told_step: dict[str, int] = {}

    def sentences(self, status: RunStatus) -> list[str]:
        """What is new in the status."""
        return [*self._phases(status), *self._stage_changes(status), *self._generations(status), *self._steps(status)]

    def _phases(self, status: RunStatus) -> list[str]:
        if status.phase == self._phase:
            return []
        self._phase = status.phase
        return [f"phase {status.phase}"]

    def _stage_changes(self, status: RunStatus) -> list[str]:
        told = []
        for number, stage in enumerate(status.stages, start=1):
            if stage.state != self._stages.get(stage.name, "Pending"):
                told.append(f"stage {number}/{len(status.stages)} {stage.name} ({stage.task}): {stage.state}")
            self._stages[stage.name] = stage.state
        return told

    def _generations(self, status: RunStatus) -> list[str]:
        new = [g for g in status.generations if g.number > self._generation]
        if new:
            self._generation = new[-1].number
        return [_generation_sentence(g) for g in new]

    def _steps(self, status: RunStatus) -> list[str]:
        stage = next((s for s in status.stages if s.name == status.stage), None)
        if stage is None or status.step == 0:
            return []
        total = stage.total_steps or work_units(status)
        told = self._told_step.get(stage.name, 0)
        every = max(1, (total or STEP_LINES) // STEP_LINES)
        at_end = total is not None and status.step >= total > told
        if told <= status.step < told + every and not at_end:
            return []
        self._told_step[stage.name] = status.step
        return [_step_sentence(status, stage.name, total)]


def _generation_sentence(generation: GenerationStatus) -> str:
    why = f"{generation.reason}: {generation.message}" if generation.message else generation.reason
    members = ", ".join(generation.members)
    return f"generation {generation.number} of {generation.stage}: {generation.world_size} workers on {members} ({why})"


def _step_sentence(status: RunStatus, stage: str, total: int | None) -> str:
    progress = status.generations[-1].progress if status.generations else None
    parts = [f"{stage} step {status.step}" + (f"/{total}" if total else "")]
    if progress and progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress and progress.samples_per_second is not None:
        parts.append(f"{progress.samples_per_second:.1f} samples/s")
    if status.cost:
        parts.append(f"{status.cost.total} {status.cost.currency}")
    return "  ".join(parts)


class PlainDisplay:
    """One line of text per change, for logs and CI."""

    def __init__(self, stream: TextIO, clock: Callable[[], datetime] = _now) -> None:
        self._stream, self._clock = stream, clock
        self._changes = _Changes()

    def __enter__(self) -> Self:
        self._write(GPU_NOTE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def update(self, run: Json, observed: Observed | None = None) -> None:  # noqa: ARG002 - for screens only
        """Write a line for each change since the last call."""
        for sentence in self._changes.sentences(_status_of(run)):
            self._write(sentence)

    def event(self, text: str) -> None:
        """Write the text as a line of its own."""
        self._write(text)

    def result(self, run: Json, files: Mapping[str, Path]) -> None:
        """Print the bill and where things are."""
        _print_result(Console(file=self._stream, width=100, color_system=None), run, files)

    def _write(self, text: str) -> None:
        self._stream.write(f"{self._clock():%H:%M:%S}  {text}\n")
        self._stream.flush()


class JsonDisplay:
    """One JSON object per line: the status when it changed, and events."""

    def __init__(self, stream: TextIO, clock: Callable[[], datetime] = _now) -> None:
        self._stream, self._clock = stream, clock
        self._last: Json | None = None

    def __enter__(self) -> Self:
        self._write({"type": "note", "message": GPU_NOTE})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def update(self, run: Json, observed: Observed | None = None) -> None:  # noqa: ARG002 - for screens only
        """Write the status if it changed."""
        status = run.get("status") or {}
        if status != self._last:
            self._last = status
            self._write({"type": "status", "status": status})

    def event(self, text: str) -> None:
        """Write the text as a JSON line of type `event`."""
        self._write({"type": "event", "message": text})

    def result(self, run: Json, files: Mapping[str, Path]) -> None:
        """Write the final status and where things are."""
        paths = {name: str(path) for name, path in files.items()}
        self._write({"type": "result", "phase": _status_of(run).phase, "files": paths})

    def _write(self, document: Json) -> None:
        line = {"at": self._clock().isoformat(), **document}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()


def _print_result(console: Console, run: Json, files: Mapping[str, Path]) -> None:
    status = _status_of(run)
    if status.cost:
        console.print(cost_table(status.cost))
    console.print(Text(f"{run['metadata']['name']}: {status.phase}", style="bold"))
    for name, path in files.items():
        console.print(Text(f"  {name:<8} {path}"), soft_wrap=True)


def _status_of(run: Json) -> RunStatus:
    return read_status(run.get("status")).status
