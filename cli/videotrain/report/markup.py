"""HTML with escaping on by default: only what is wrapped in Html goes into the page as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

UNFOLDED_ROWS = 12
"""A longer list is folded."""
SHOWN_ROWS = 200
"""Longest list in the page; the rest is in the JSON files."""


class Html(str):
    """Markup that is safe to put into a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as escaped text."""
    return Html(escape(str(value), quote=True))


def join(*parts: Html) -> Html:
    """One piece after another."""
    return Html("\n".join(part for part in parts if part))


def element(tag: str, content: Html | None = None, **attributes: object) -> Html:
    """An element. `class_` becomes `class`, `data_x` becomes `data-x`, True a bare attribute, None none."""
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    end = "" if content is None else f"{content}</{tag}>"
    return Html(f"<{tag}{written}>{end}")


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    spelled = name.rstrip("_").replace("_", "-")
    return f" {spelled}" if value is True else f' {spelled}="{escape(str(value), quote=True)}"'


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> Html:
    """A table; columns in `numbers` are right-aligned. Cells that are Html go in as they are."""
    right = set(numbers)
    head = [element("th", text(h), class_="number" if i in right else None) for i, h in enumerate(headings)]
    body = [element("tr", Html("".join(_cell(v, i in right) for i, v in enumerate(row)))) for row in rows]
    head_row = element("thead", element("tr", Html("".join(head))))
    return element("div", element("table", join(head_row, element("tbody", join(*body)))), class_="scroll")


def _cell(value: object, right: bool) -> str:
    content = value if isinstance(value, Html) else text("" if value is None else value)
    return element("td", content, class_="number" if right else None)


def long_table(headings: Sequence[str], rows: Sequence[Sequence[object]], numbers: Iterable[int] = ()) -> Html:
    """A table of which a long one is folded, and a very long one cut."""
    shown = table(headings, rows[:SHOWN_ROWS], numbers)
    more = len(rows) - SHOWN_ROWS
    note = element("p", text(f"... and {more:,} more, see the JSON files"), class_="dim") if more > 0 else Html("")
    return folded(f"{len(rows):,} rows", shown, note) if len(rows) > UNFOLDED_ROWS else shown


def clock(at: str | None) -> str:
    """A moment of summary.json for people; empty if there is none."""
    return f"{datetime.fromisoformat(at):%b %d %H:%M:%S}" if at else ""


def section(title: str, *parts: Html, lead: str = "") -> Html:
    """A titled part of the page."""
    head = element("h2", text(title))
    intro = element("p", text(lead), class_="lead") if lead else Html("")
    return element("section", join(head, intro, *parts))


def folded(title: str, *parts: Html, opened: bool = False) -> Html:
    """What is shown when its title is clicked, or printed."""
    return element("details", join(element("summary", text(title)), *parts), open=opened)
