"""Boards and panels of Grafana, as far as ours use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "stack", "number", "name"]
"""`name` shows the legend instead of the value: for series that are 1 for what is so."""


@dataclass(frozen=True)
class Panel:
    """One time series panel of a dashboard, in Grafana's terms."""

    title: str
    queries: Sequence[tuple[str, str]]
    """PromQL and legend; the legend of a single series may be empty."""
    unit: str = "short"
    """A unit of Grafana, such as `s`, `bytes` or `percentunit`. Money has none: its legend names the currency."""
    kind: Kind = "lines"
    help: str = ""
    """What a reader should conclude; shown at the panel's corner."""
    span: int = 8
    """Width in the 24 columns of a board."""
    links_to_run: bool = False
    """A click on a series opens its run's board; the series must keep the labels `namespace` and `run`."""


@dataclass(frozen=True)
class Board:
    """Rows of panels, from top to bottom."""

    uid: str
    title: str
    variables: tuple[Literal["namespace", "run"], ...]
    rows: Sequence[tuple[str, Sequence[Panel]]]
