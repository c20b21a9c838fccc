"""Boards ask for what is exposed, and what is exposed is on a board."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import pytest

from videotrain_api.generate.dashboards import BOARDS, dashboard_files
from videotrain_api.generate.panels import Panel
from videotrain_api.metrics import CATALOGUE

VALUES = {"$__rate_interval": "5m", "$__range": "6h", "$namespace": "default", "$run": "demo"}
QUERIES = [
    pytest.param(panel, query, legend, id=f"{board.uid}: {panel.title}: {legend}")
    for board in BOARDS
    for _, panels in board.rows
    for panel in panels
    for query, legend in panel.queries
]


@dataclass(frozen=True)
class Use:
    """A series in a query, the labels by which it is chosen, and whether a function takes its history."""

    name: str
    labels: frozenset[str]
    ranged: bool


def parsed(query: str) -> Any:
    for name, value in VALUES.items():
        query = query.replace(name, value)
    return promql_parser.parse(query)


def parts(node: Any) -> Iterator[Any]:
    yield node
    below = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector", "param")]
    for part in [*below, *getattr(node, "args", [])]:
        if part is not None:
            yield from parts(part)


def uses(query: str) -> list[Use]:
    nodes = list(parts(parsed(query)))
    inner = [node.vector_selector for node in nodes if isinstance(node, promql_parser.MatrixSelector)]
    instant = [node for node in nodes if isinstance(node, promql_parser.VectorSelector)]
    found = [(node, True) for node in inner]
    found += [(node, False) for node in instant if node.name not in {other.name for other in inner}]
    return [Use(node.name, frozenset(m.name for m in node.matchers.matchers), ranged) for node, ranged in found]


def series(name: str) -> str:
    """The catalogue's name of a series: a histogram is stored as three."""
    return re.sub(r"_(bucket|sum|count)$", "", name) if name not in CATALOGUE else name


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_a_query_asks_for_series_and_labels_of_the_catalogue(panel: Panel, query: str, legend: str) -> None:
    found = uses(query)
    assert found
    for use in found:
        metric = CATALOGUE[series(use.name)]
        assert use.labels <= set(metric.labels)
        assert (use.name == metric.name) == (metric.kind != "histogram")


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_a_legend_and_a_link_name_labels_that_the_query_keeps(panel: Panel, query: str, legend: str) -> None:
    nodes = [node for node in parts(parsed(query)) if isinstance(node, promql_parser.AggregateExpr)]
    kept = {label for node in nodes if node.modifier for label in node.modifier.labels}
    exposed = {label for use in uses(query) for label in CATALOGUE[series(use.name)].labels}
    assert kept <= exposed | {"le"}
    assert set(re.findall(r"{{(\w+)}}", legend)) <= kept
    assert not panel.links_to_run or {"namespace", "run"} <= kept


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_only_counters_and_histograms_have_a_rate(panel: Panel, query: str, legend: str) -> None:
    for use in uses(query):
        assert not use.ranged or CATALOGUE[series(use.name)].kind in ("counter", "histogram")


def test_every_series_of_the_catalogue_is_on_a_board() -> None:
    shown = {series(use.name) for case in QUERIES for use in uses(case.values[1])}
    assert set(CATALOGUE) - shown == set()


def test_boards_are_whole_grafana_documents() -> None:
    documents = [json.loads(text) for text in dashboard_files().values()]
    assert len({document["uid"] for document in documents}) == len(documents) == len(BOARDS)
    for document, board in zip(documents, BOARDS, strict=True):
        panels = document["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
        assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", *board.variables}
        used = {name for name in ("namespace", "run") if f"${name}" in json.dumps(panels)}
        assert used == set(board.variables)


def test_panels_of_a_board_do_not_overlap() -> None:
    for text in dashboard_files().values():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(text)["panels"]:
            box = panel["gridPos"]
            cells = {(box["x"] + i, box["y"] + j) for i in range(box["w"]) for j in range(box["h"])}
            assert not cells & taken, panel["title"]
            taken |= cells
