"""`videotrain top`: the runs of a cluster, live, from their status alone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from videotrain.commands.cluster_runs import ClusterChoice, read_runs
from videotrain.commands.top_table import View, print_runs_table, runs_table
from videotrain.errors import UsageError
from videotrain.local.screen import forecast_words, render_screen
from videotrain_api.money import parse_micros
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Condition

KEYS_NOTE = "↑ ↓ choose   enter open   esc back   q quit"
KEY = re.compile(r"\x1b(?:[\[O][0-9;]*[A-Za-z~])?|.", re.DOTALL)
"""One key in what a terminal sends, which may be several of them at once."""
ESCAPES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "first",
    "\x1b[F": "last",
    "\x1b": "back",
    "\r": "open",
    "\n": "open",
    "g": "first",
    "G": "last",
    "k": "up",
    "j": "down",
    "q": "quit",
}
PAGE = 10
"""Runs by which a page goes on."""
FAR = 10**6
STEPS = {"up": -1, "down": 1, "page up": -PAGE, "page down": PAGE, "first": -FAR, "last": FAR}


@dataclass(frozen=True, kw_only=True)
class TopOptions:
    """What the user asked for."""

    where: ClusterChoice
    seconds: float
    """Between looks at the cluster."""
    once: bool
    json: bool


def top(options: TopOptions) -> int:
    """Show runs until the user quits, or once.

    Raises:
        UsageError: the cluster cannot be asked.
    """
    console = Console()
    if options.json or options.once or not (console.is_terminal and sys.stdin.isatty()):
        rows = [row_of(run) for run in asyncio.run(read_runs(options.where))]
        if options.json:
            sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        else:
            print_runs_table(rows)
        return 0
    _watch(console, options)
    return 0


def row_of(run: Json) -> Json:
    """What `top` tells of a run; amounts are decimal strings, as in its status."""
    status = read_status(run.get("status")).status
    cost, last = status.cost, status.generations[-1] if status.generations else None
    stage = next((each for each in status.stages if each.name == status.stage), None)
    progress = last.progress if last is not None and last.end_cause is None else None
    each = progress.seconds_per_step(least=1) if progress is not None else None
    return {
        "namespace": run["metadata"]["namespace"],
        "name": run["metadata"]["name"],
        "phase": status.phase,
        "stage": status.stage,
        "step": status.step,
        "totalSteps": stage.total_steps if stage else None,
        "secondsPerStep": each,
        "samplesPerSecond": status.throughput.samples_per_second,
        "mfuPercent": status.throughput.mfu_percent,
        "nodes": status.nodes.current,
        "goodputPercent": cost.goodput_percent if cost else None,
        "currency": cost.currency if cost else None,
        "spent": cost.total if cost else None,
        "ratePerHour": cost.rate_per_hour if cost else None,
        "forecast": cost.forecast if cost else None,
        "forecastLow": cost.forecast_low if cost else None,
        "forecastHigh": cost.forecast_high if cost else None,
        "budgetPercent": cost.budget_percent if cost else None,
        "alerts": alerts(run, status),
    }


def alerts(run: Json, status: RunStatus) -> list[str]:
    """What somebody should look at, by the conditions and the bill."""
    bad: dict[str, str] = {Condition.FAILED: "True", Condition.RESTARTING: "True", Condition.SCHEDULED: "False"}
    bad |= {Condition.ACCEPTED: "False"}
    if status.phase in ("Succeeded", "Suspended"):
        bad.clear()
    if status.phase != "Succeeded":  # a budget is why it rests
        bad |= {Condition.BUDGET_OK: "False", Condition.TEAM_BUDGET_OK: "False"}
    found = [f"{c.type}: {c.reason}" for c in status.conditions if bad.get(c.type) == c.status]
    cost, budget = status.cost, (run["spec"].get("budget") or {}).get("maxCost")
    if cost is not None and cost.forecast and budget and parse_micros(cost.forecast) > parse_micros(budget):
        found.append(f"forecast above the budget of {budget}")
    found += [f"avoids {node.name}: {node.reason}" for node in status.suspect_nodes]
    return found


class Screen:
    """Which run is chosen, and whether it is open."""

    def __init__(self) -> None:
        self.runs: list[Json] = []
        self._rows: list[Json] = []
        self.chosen = 0
        self.open = False
        self.trouble = ""

    def renew(self, runs: list[Json]) -> None:
        """Show these; the chosen run stays chosen, and what was open and is gone is closed."""
        uids = [run["metadata"].get("uid") for run in runs]
        if self.runs:
            uid = self.runs[self.chosen]["metadata"].get("uid")
            self.open = self.open and uid in uids
            self.chosen = uids.index(uid) if uid in uids else min(self.chosen, max(0, len(runs) - 1))
        self.runs, self.trouble = runs, ""
        self._rows = [row_of(run) for run in runs]  # once per look: reading a thousand statuses takes a second

    def press(self, keys: str) -> bool:
        """Act on keys; False to quit."""
        for key in KEY.findall(keys):
            name = ESCAPES.get(key, "")
            self.chosen = max(0, min(len(self.runs) - 1, self.chosen + STEPS.get(name, 0)))
            self.open = (self.open or (name == "open" and bool(self.runs))) and name != "back"
            if name == "quit":
                return False
        return True

    def show(self, now: datetime, width: int | None = None, lines: int | None = None) -> RenderableType:
        """The picture of now.

        Args:
            now: the time, aware.
            width: of the screen, cells; as wide as it takes if None.
            lines: of the screen; as many as it takes if None.
        """
        foot = Text(self.trouble or KEYS_NOTE, style="red" if self.trouble else "dim")
        if not self.open:
            told = [Text(text, style="yellow") for text in (self._rows[self.chosen]["alerts"] if self._rows else ())]
            free = None if lines is None else lines - len(told) - 1
            return Group(runs_table(self._rows, View(width, free, self.chosen)), *told, foot)
        run = self.runs[self.chosen]
        status = read_status(run.get("status")).status
        words = [Text(f"{c.type}={c.status}  {c.reason}  {c.message}", style="dim") for c in status.conditions]
        expected = [Text(f"forecast {forecast_words(status.cost)}")] if status.cost and status.cost.forecast else []
        return Group(render_screen(run, (), [], status.completion_time or now), *expected, *words, foot)


def _watch(console: Console, options: TopOptions) -> None:
    screen, looked = Screen(), float("-inf")
    loop = asyncio.new_event_loop()
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                if loop.time() - looked >= options.seconds:
                    try:
                        screen.renew(loop.run_until_complete(read_runs(options.where)))
                    except UsageError as error:  # shown, and tried again: a cluster may be away for a while
                        screen.trouble = str(error)
                    looked = loop.time()
                live.update(screen.show(datetime.now(UTC), *console.size), refresh=True)
                if not screen.press(next(keys)):
                    return
        except KeyboardInterrupt:
            return
        finally:
            loop.close()


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Keys as they are pressed, an empty text when none was for a second."""
    stream = sys.stdin.fileno()
    before = termios.tcgetattr(stream)
    tty.setcbreak(stream)

    def pressed() -> Iterator[str]:
        while True:
            ready, _, _ = select.select([stream], [], [], 1.0)
            yield os.read(stream, 256).decode(errors="ignore") if ready else ""

    try:
        yield pressed()
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)
