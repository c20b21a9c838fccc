"""Boards and panels of Grafana, as far as ours use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "stack", "number", "name"]
"""`name` shows the legend instead of the value: for series that are 1 for what is so."""
Variable = Literal["cluster", "namespace", "team", "run", "stage", "pod"]
Target = Literal["run", "node", "runbook"]
"""What a click on a series opens: its run's board, its pod's node, or the page of its alert. The series must keep the
labels that name it: `namespace` and `run`, `pod`, `alertname`."""


@dataclass(frozen=True)
class Panel:
    """One time series panel of a dashboard, in Grafana's terms."""

    title: str
    queries: Sequence[tuple[str, str]]
    """PromQL and legend; the legend of a single series may be empty."""
    unit: str = "short"
    """A unit of Grafana, such as `s`, `bytes` or `percentunit`. `money` where the legend ends with the currency."""
    kind: Kind = "lines"
    help: str = ""
    """What a reader should conclude; shown at the panel's corner."""
    span: int = 8
    """Width in the 24 columns of a board."""
    opens: Target | None = None


@dataclass(frozen=True)
class Annotation:
    """Marks in all panels of a board."""

    name: str
    query: str
    """PromQL; a mark where it has a value."""
    title: str
    """Of a mark; `{{label}}` is filled in."""
    colour: str
    """One of Grafana's names."""


@dataclass(frozen=True)
class Board:
    """Rows of panels, from top to bottom."""

    uid: str
    title: str
    variables: tuple[Variable, ...]
    rows: Sequence[tuple[str, Sequence[Panel]]]
    annotations: Sequence[Annotation] = ()
    one_run: bool = False
    """It shows one run of one namespace; the others show all until some are chosen."""
