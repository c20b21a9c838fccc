"""Every panel of every board asks a real Prometheus what it answers, of a real run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from support.chart import NAMESPACE
from support.exporter_pages import LAB
from support.monitored_run import RUN, InstalledScene, Scene

from videotrain_api.generate.alerts import ALERTS, rules
from videotrain_api.generate.boards.operator import OPERATOR
from videotrain_api.generate.dashboards import BOARDS, document
from videotrain_api.generate.panels import Board, Panel

pytestmark = pytest.mark.timeout(1800)
OF_GPUS = LAB
"""Variables under which panels of GPUs of known speed have something to show."""

PANELS = [
    pytest.param(board, panel, id=f"{board.uid}: {panel.title}")
    for board in BOARDS
    if board is not OPERATOR
    for _, panels in board.rows
    for panel in panels
]


def filled(query: str, scene: Scene, run: Mapping[str, str]) -> str:
    """A query as Grafana sends it."""
    seconds = int(scene.end - scene.start)
    values = {"$__rate_interval": "30s", "$__range_s": str(seconds), "$__range": f"{seconds}s", "$cluster": ".*"}
    values |= {"$namespace": run["namespace"], "$run": run["run"], "$stage": ".*", "$pod": ".*", "$team": ".*"}
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def has_data(scene: Scene, query: str, panel: Panel, run: Mapping[str, str]) -> bool:
    asked = filled(query, scene, run)
    if panel.kind in ("number", "name"):
        return bool(scene.prometheus.matrix(asked, scene.end, scene.end))
    return bool(scene.prometheus.matrix(asked, scene.start, scene.end))


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_a_panel_has_data(scene: Scene, board: Board, panel: Panel) -> None:
    runs = ({"namespace": "default", "run": RUN}, OF_GPUS)
    if not board.one_run:
        runs = ({"namespace": ".*", "run": ".*"},)
    empty = [query for query, _ in panel.queries if not any(has_data(scene, query, panel, run) for run in runs)]
    assert not empty, [filled(query, scene, runs[0]) for query in empty]


@pytest.mark.parametrize("panel", [panel for _, panels in OPERATOR.rows for panel in panels], ids=lambda p: p.title)
def test_a_panel_of_the_operator_has_data(operator_scene: Scene, panel: Panel) -> None:
    everything = {"namespace": ".*", "run": ".*"}
    empty = [query for query, _ in panel.queries if not has_data(operator_scene, query, panel, everything)]
    assert not empty


@pytest.mark.parametrize("board", [board for board in BOARDS if board.one_run], ids=lambda board: board.uid)
def test_marks_of_a_board_are_valid_queries(scene: Scene, board: Board) -> None:
    run = {"namespace": "default", "run": RUN}
    for annotation in board.annotations:
        assert scene.prometheus.matrix(filled(annotation.query, scene, run), scene.start, scene.end)


def test_prometheus_loads_and_evaluates_every_rule(scene: Scene) -> None:
    groups = scene.prometheus.ask("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    wanted = [rule.get("alert") or rule["record"] for group in rules()["groups"] for rule in group["rules"]]
    assert set(found) == set(wanted)
    assert {name: rule["lastError"] for name, rule in found.items() if rule.get("lastError")} == {}


def test_helm_installs_rules_and_boards(operator_scene: InstalledScene) -> None:
    def objects(kind: str) -> list[Any]:
        found = operator_scene.release.kubectl("-n", NAMESPACE, "get", kind, "-o", "json").stdout
        return list(json.loads(found)["items"])

    (installed,) = objects("prometheusrules")
    assert installed["spec"] == rules()
    boards = {board.uid: document(board) for board in BOARDS}
    texts = [item["spec"]["json"] for item in objects("grafanadashboards")]
    assert {board["uid"]: board for board in map(json.loads, texts)} == boards
    maps = [item for item in objects("configmaps") if "grafana_dashboard" in item["metadata"].get("labels", {})]
    texts = [text for item in maps for text in item["data"].values()]
    assert {board["uid"]: board for board in map(json.loads, texts)} == boards
    assert len(objects("servicemonitors")) == len(objects("podmonitors")) == 1


def test_the_operator_tells_of_what_its_chart_says_is_reserved(operator_scene: InstalledScene) -> None:
    found = operator_scene.prometheus.vector("last_over_time(videotrain_reserved_idle_cost_per_hour[1h])")
    assert [(labels["commitment"], labels["currency"], value) for labels, value in found] == [
        ("three-years", "USD", 12.0)
    ]


def test_only_alerts_of_what_happened_fired(scene: Scene) -> None:
    """A node of one run is avoided, and the lab has no GPU faults; the local command has no leader."""
    asked = 'ALERTS{alertname=~"VideoTrain.*", alertstate="firing"}'
    fired = {labels["alertname"] for labels, _ in scene.prometheus.matrix(asked, scene.start, scene.end)}
    assert fired <= {alert.name for alert in ALERTS}
    assert "VideoTrainNodeSuspected" in fired
    assert fired <= {"VideoTrainNodeSuspected", "VideoTrainOperatorAbsent"}


def test_no_counter_of_the_run_ever_fell(scene: Scene) -> None:
    asked = f'{{__name__=~"videotrain_.*_total", run="{RUN}"}}'
    for labels, values in scene.prometheus.matrix(asked, scene.start, scene.end):
        if "pod" not in labels:  # a pod's counters begin anew with its agent
            assert values == sorted(values), labels


def test_no_label_of_ours_is_taken_by_the_scrape(scene: Scene) -> None:
    names = scene.prometheus.ask("labels")
    assert [name for name in names if re.match("exported_", name)] == []
