"""Boards ask for what is exposed, and what is exposed is on a board."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import pytest

from videotrain_api.generate.alerts import ALERTS
from videotrain_api.generate.dashboards import BOARDS, dashboard_files
from videotrain_api.generate.dcgm import DCGM, Series
from videotrain_api.generate.panels import Panel
from videotrain_api.generate.recordings import BY_NAME, RECORDINGS, Recording
from videotrain_api.metrics import CATALOGUE, Metric

VALUES = {
    "$__rate_interval": "5m",
    "$__range_s": "21600",
    "$__range": "6h",
    "$cluster": ".*",
    "$namespace": "default",
    "$run": "demo",
    "$stage": ".*",
    "$pod": ".*",
}
ALERTS_FIRING = Series("ALERTS", "Prometheus' own.", labels=("alertname", "alertstate"))
KNOWN: dict[str, Metric | Recording | Series] = {**CATALOGUE, **BY_NAME, **DCGM, "ALERTS": ALERTS_FIRING}
OPENS = {"run": {"namespace", "run"}, "node": {"pod"}, "runbook": {"alertname"}}
QUERIES = [
    pytest.param(panel, query, legend, id=f"{board.uid}: {panel.title}: {legend}")
    for board in BOARDS
    for _, panels in board.rows
    for panel in panels
    for query, legend in panel.queries
]


@dataclass(frozen=True)
class Use:
    """A series in a query, the labels by which it is chosen, and whether its rate or increase is taken."""

    name: str
    labels: frozenset[str]
    rated: bool


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
    found, rated = {}, set()
    for node in parts(parsed(query)):
        if isinstance(node, promql_parser.Call) and node.func.name in ("rate", "increase"):
            rated |= {
                id_of(part.vector_selector) for part in node.args if isinstance(part, promql_parser.MatrixSelector)
            }
        selector = getattr(node, "vector_selector", node)
        if isinstance(selector, promql_parser.VectorSelector):
            found[id_of(selector)] = selector
    return [
        Use(selector.name, frozenset(m.name for m in selector.matchers.matchers) - {"cluster"}, key in rated)
        for key, selector in found.items()
    ]


def id_of(selector: Any) -> str:
    return str(selector)


def series(name: str) -> str:
    """The name of a series by which it is known: a histogram is stored as three."""
    return re.sub(r"_(bucket|sum|count)$", "", name) if name not in KNOWN else name


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_a_query_asks_for_series_and_labels_of_the_catalogue(panel: Panel, query: str, legend: str) -> None:
    found = uses(query)
    assert found
    for use in found:
        known = KNOWN[series(use.name)]
        assert use.labels <= set(known.labels)
        assert (use.name == known.name) == (not isinstance(known, Metric) or known.kind != "histogram")


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_a_legend_and_a_link_name_labels_that_the_query_keeps(panel: Panel, query: str, legend: str) -> None:
    nodes = [node for node in parts(parsed(query)) if isinstance(node, promql_parser.AggregateExpr)]
    kept = {label for node in nodes if node.modifier for label in node.modifier.labels}
    exposed = {label for use in uses(query) for label in KNOWN[series(use.name)].labels}
    assert kept <= exposed | {"le"}
    assert set(re.findall(r"{{(\w+)}}", legend)) <= kept
    assert panel.unit != "money" or legend.endswith("{{currency}}")


def test_a_link_finds_its_labels_in_some_query_of_its_panel() -> None:
    for panel in (panel for board in BOARDS for _, panels in board.rows for panel in panels if panel.opens):
        nodes = [node for query, _ in panel.queries for node in parts(parsed(query))]
        kept = {
            label
            for node in nodes
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier
            for label in node.modifier.labels
        }
        assert OPENS[panel.opens] <= kept, panel.title


@pytest.mark.parametrize(("panel", "query", "legend"), QUERIES)
def test_only_counters_and_histograms_have_a_rate(panel: Panel, query: str, legend: str) -> None:
    for use in uses(query):
        assert not use.rated or CATALOGUE[series(use.name)].kind in ("counter", "histogram")


def test_every_series_of_the_catalogue_is_on_a_board() -> None:
    shown = {series(use.name) for case in QUERIES for use in uses(case.values[1])}
    shown |= {series(use.name) for name in shown & BY_NAME.keys() for use in uses(BY_NAME[name].expression)}
    assert (CATALOGUE.keys() | DCGM.keys()) - shown == set()


def test_a_recording_is_of_series_that_are_known_and_is_used() -> None:
    used = {use.name for case in QUERIES for use in uses(case.values[1])}
    used |= {use.name for alert in ALERTS for use in uses(alert.expression)}
    for recording in RECORDINGS:
        assert recording.name in used
        for use in uses(recording.expression):
            known = CATALOGUE[series(use.name)]
            assert use.labels <= set(known.labels)
            assert not use.rated or known.kind in ("counter", "histogram")


def test_annotations_are_of_known_series_and_name_labels_that_are_kept() -> None:
    for board in BOARDS:
        for annotation in board.annotations:
            (use,) = uses(annotation.query)
            assert use.labels <= set(CATALOGUE[use.name].labels)
            assert set(re.findall(r"{{(\w+)}}", annotation.title)) <= set(CATALOGUE[use.name].labels)


def test_boards_are_whole_grafana_documents() -> None:
    documents = [json.loads(text) for text in dashboard_files().values()]
    assert len({document["uid"] for document in documents}) == len(documents) == len(BOARDS)
    for document, board in zip(documents, BOARDS, strict=True):
        panels = document["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
        assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", *board.variables}
        everything = json.dumps([panels, document["templating"]])
        assert {
            name for name in ("cluster", "namespace", "team", "run", "stage", "pod") if f"${name}" in everything
        } == {*board.variables}


def test_every_line_has_a_name() -> None:
    """Also one of nothing: Grafana would call it Value, or by its query."""
    for board in map(json.loads, dashboard_files().values()):
        lines = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
        assert lines and all(target["legendFormat"] for panel in lines for target in panel["targets"])
        for target in (target for panel in lines for target in panel["targets"]):
            named = "{{" in target["legendFormat"]
            assert " or vector(0)" not in target["expr"]
            assert not target["expr"].endswith("or on() vector(0)") or not named, target


def test_panels_of_a_board_do_not_overlap() -> None:
    for text in dashboard_files().values():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(text)["panels"]:
            box = panel["gridPos"]
            cells = {(box["x"] + i, box["y"] + j) for i in range(box["w"]) for j in range(box["h"])}
            assert not cells & taken, panel["title"]
            taken |= cells
