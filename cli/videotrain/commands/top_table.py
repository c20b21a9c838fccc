"""The table of `videotrain top`: a line for each run, whatever the width and the height of the screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from videotrain.commands.plan_tables import new_table
from videotrain.local.screen import PHASE_STYLES
from videotrain.wording import money
from videotrain_api.money import parse_micros
from videotrain_api.schema import Json

WORDS: Final = ("namespace", "run", "phase", "stage")
ALERTS: Final = "alerts"
GIVEN_UP: Final = ("stage", "nodes", "namespace", "s/step", "goodput", "MFU", "per hour", "step", "spent")
"""Columns that a narrow screen lacks, the first of them first."""
GAP: Final = 3
"""Between two columns."""
LEAST_ALERTS: Final = 16
LONGEST_NAME: Final = 32
FRAME: Final = 5
"""Lines of title, headings, rule and space."""


WIDE: Final = 1000
"""Of output that nobody sees on a screen: nothing of it is cut."""


class View(NamedTuple):
    """Which part of the runs is to be seen, and how."""

    width: int | None = None
    """Of the screen; as wide as it takes if None."""
    lines: int | None = None
    """Of the table, title and headings included; all runs if None."""
    chosen: int | None = None
    """Number of the run that is marked."""


def print_runs_table(rows: Sequence[Json]) -> None:
    """Print all runs, cut to the width of a terminal if it goes to one."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    console.print(runs_table(rows, View(console.width if console.is_terminal else None)))


def runs_table(rows: Sequence[Json], view: View) -> Table:
    """One line per run; with few lines those around the chosen one."""
    longest = WIDE if view.width is None else LONGEST_NAME
    cells = [_cells(row, longest) for row in rows]
    columns = _columns(cells, view.width)
    first, last = _window(len(rows), view)
    table = new_table(_title(rows, first, last), [name for name in columns if name in WORDS], ())
    for name in columns:
        if name not in WORDS and name != ALERTS:
            table.add_column(name, justify="right")
    table.add_column(ALERTS, ratio=None if view.width is None else 1)
    table.width = view.width
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    for index in range(first, last):
        texts = [Text(cells[index][name], style=_style(name, rows[index])) for name in (*columns, ALERTS)]
        table.add_row(*texts, style="reverse" if index == view.chosen else "")
    return table


def _title(rows: Sequence[Json], first: int, last: int) -> str:
    shown = f", {first + 1} to {last} shown" if last - first < len(rows) else ""
    rates = "".join(f", {rate} an hour" for rate in _rates(rows))
    return f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}{shown}{rates}"


def _rates(rows: Sequence[Json]) -> Iterator[str]:
    """What all of them burn, by currency."""
    found: dict[str, int] = {}
    for row in rows:
        if row["ratePerHour"] is not None:
            currency = row["currency"] or ""
            found[currency] = found.get(currency, 0) + parse_micros(row["ratePerHour"])
    yield from (money(micros, currency) for currency, micros in sorted(found.items()) if micros)


def _window(count: int, view: View) -> tuple[int, int]:
    """First and behind the last run that is shown; the chosen one stays in the middle where there are more."""
    room = count if view.lines is None else max(1, view.lines - FRAME)
    first = max(0, min(count - room, (view.chosen or 0) - room // 2))
    return first, min(count, first + room)


def _columns(cells: Sequence[dict[str, str]], width: int | None) -> list[str]:
    """All but the alerts that fit beside them."""
    names = [name for name in (cells[0] if cells else dict.fromkeys(WORDS)) if name != ALERTS]
    widest = {name: max([cell_len(name), *(cell_len(row[name]) for row in cells)]) for name in names}
    for name in GIVEN_UP:
        if width is None or sum(widest[each] + GAP for each in names) + LEAST_ALERTS <= width:
            break
        names = [each for each in names if each != name]
    return names


def _cells(row: Json, longest: int) -> dict[str, str]:
    total = f"/{row['totalSteps']}" if row["totalSteps"] else ""
    name = row["name"]
    return {
        "namespace": row["namespace"],
        "run": name if len(name) <= longest else f"{name[: longest - 1]}…",
        "phase": row["phase"] or "",
        "stage": row["stage"] or "",
        "step": f"{row['step']}{total}",
        "s/step": _number(row["secondsPerStep"], ".3g"),
        "MFU": _number(row["mfuPercent"], ".0f", "%"),
        "nodes": str(row["nodes"]),
        "goodput": _number(row["goodputPercent"], ".0f", "%"),
        "spent": _amount(row["spent"], row["currency"]),
        "per hour": _amount(row["ratePerHour"], row["currency"]),
        "forecast": _amount(row["forecast"], row["currency"]),
        ALERTS: "; ".join(row["alerts"]),
    }


def _style(name: str, row: Json) -> str:
    if name == "phase":
        return PHASE_STYLES.get(row["phase"], "cyan")
    return "yellow" if name == ALERTS else ""


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _amount(amount: str | None, currency: str | None) -> str:
    return "" if amount is None else money(parse_micros(amount), currency or "")
