"""Results for a terminal and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Cell = str | float | int


def show(result: Mapping[str, Any], table: str, as_json: bool) -> None:
    """Print a result: as JSON on one line, or as a table."""
    text = json.dumps(result, sort_keys=True, allow_nan=False) if as_json else table
    sys.stdout.write(text + "\n")


def render(header: Sequence[str], rows: Sequence[Sequence[Cell]], last: Sequence[Cell] | None = None) -> str:
    """A table whose first column is text and whose others are numbers; `last` stands below a line."""
    lines = [list(header), *(_cells(row) for row in rows), *([_cells(last)] if last else [])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    drawn = [_line(line, widths) for line in lines]
    rule = "  ".join("-" * width for width in widths)
    body = [drawn[0], rule, *drawn[1:]]
    if last:
        body.insert(-1, rule)
    return "\n".join(body)


def measures(rows: Mapping[str, Mapping[str, float]], mean: Mapping[str, float]) -> str:
    """A table of measures per video and their mean."""
    names = list(mean)
    return render(
        ["video", *names],
        [[name, *(row[column] for column in names)] for name, row in rows.items()],
        ["mean", *mean.values()],
    )


def _cells(row: Sequence[Cell]) -> list[str]:
    return [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()
