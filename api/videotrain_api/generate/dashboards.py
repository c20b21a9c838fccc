"""Grafana's JSON of the boards, through the Grafana Foundation SDK."""

from __future__ import annotations

import json
from itertools import count
from typing import Any, Final

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueTextMode, LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    VariableRefresh,
    VariableSort,
)

from videotrain_api.generate.alerts import RUNBOOKS
from videotrain_api.generate.boards.data import DATA
from videotrain_api.generate.boards.fleet import FLEET_AND_MONEY
from videotrain_api.generate.boards.nodes import NODES
from videotrain_api.generate.boards.operator import OPERATOR
from videotrain_api.generate.boards.run import RUN
from videotrain_api.generate.panels import Annotation, Board, Panel, Target, Variable
from videotrain_api.metrics import GENERATION, LEADER, RUN_INFO, RUN_STEP

BOARDS: Final = (FLEET_AND_MONEY, RUN, NODES, DATA, OPERATOR)
FOLDER: Final = "charts/videotrain/files/dashboards"
TAG: Final = "videotrain"
"""Every board has it; the boards link to each other by it."""
CURRENCIES: Final = ("USD", "EUR", "GBP", "JPY", "CHF", "INR")
"""Those whose sign Grafana shows at the value; of others the legend alone tells."""
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT: Final = 8
"""Rows of Grafana's grid that a panel takes."""
_ALL: Final = ".*"
_LABELS: Final = "${__field.labels.%s}"
_LINKS: Final[dict[Target, tuple[str, str]]] = {
    "run": (
        "this run",
        f"/d/{RUN.uid}?var-namespace={_LABELS % 'namespace'}&var-run={_LABELS % 'run'}&${{__url_time_range}}",
    ),
    "node": (
        "the node of this pod",
        f"/d/{NODES.uid}?${{namespace:queryparam}}&${{run:queryparam}}&var-pod={_LABELS % 'pod'}&${{__url_time_range}}",
    ),
    "runbook": ("what to do", f"{RUNBOOKS}/{_LABELS % 'alertname'}.md"),
}
"""Title and address."""


def dashboard_files() -> dict[str, str]:
    """Content of every dashboard by its path in the repository; a file has the name of its board's uid."""
    return {f"{FOLDER}/{board.uid}.json": json.dumps(document(board), indent=2) + "\n" for board in BOARDS}


def document(board: Board) -> dict[str, Any]:
    """A board as Grafana imports it."""
    encoded: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(_dashboard(board).build()))
    marks = {annotation.name: annotation.title for annotation in board.annotations}
    for variable in encoded["templating"]["list"]:
        for name in ("auto", "auto_count", "auto_min"):  # which are of intervals, and none of ours is one
            variable.pop(name, None)
    for annotation in encoded["annotations"]["list"]:
        # The SDK knows the fields of Grafana's own annotations, and not those of Prometheus.
        annotation["titleFormat"] = marks[annotation["name"]]
    return encoded


def _dashboard(board: Board) -> grafana.Dashboard:
    built = grafana.Dashboard(board.title).uid(board.uid).tags([TAG]).readonly()
    built = built.timezone("browser").time("now-6h", "now").refresh("30s")
    others = grafana.DashboardLink("videotrain").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    built = built.link(others.as_dropdown(True).include_vars(True).keep_time(True))
    built = built.link(grafana.DashboardLink("Runbook").type(DashboardLinkType.LINK).url(f"{RUNBOOKS}/README.md"))
    built = built.with_variable(grafana.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for name in board.variables:
        built = built.with_variable(_variable(board, name))
    for annotation in board.annotations:
        built = built.annotation(_annotation(annotation))
    numbers = count(1)
    for title, panels in board.rows:
        built = built.with_row(grafana.Row(title).id(next(numbers)))
        for panel in panels:
            drawn = _value(panel) if panel.kind in ("number", "name") else _lines(panel)
            built = built.with_panel(drawn.id(next(numbers)))
    return built


def _variable(board: Board, name: Variable) -> grafana.QueryVariable:
    series, matchers = {
        "cluster": (LEADER, ""),
        "namespace": (RUN_INFO, 'cluster=~"$cluster"'),
        "team": (RUN_INFO, 'cluster=~"$cluster", namespace=~"$namespace"'),
        "run": (RUN_INFO, 'cluster=~"$cluster", namespace=~"$namespace"'),
        "stage": (RUN_STEP, 'namespace="$namespace", run="$run"'),
        "pod": (GENERATION, 'namespace="$namespace", run="$run"'),
    }[name]
    if name == "run" and "team" in board.variables:
        matchers += ', team=~"$team"'
    selector = f"{series.name}{{{matchers}}}" if matchers else series.name
    built = grafana.QueryVariable(name).label(name).datasource(_SOURCE).query(f"label_values({selector}, {name})")
    built = built.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    if board.one_run and name in ("namespace", "run"):
        return built
    built = built.multi(True).include_all(True)
    # All runs are those of the chosen teams, one by one; of the others, all is whatever there is.
    return built if name == "run" else built.all_value(_ALL)


def _annotation(annotation: Annotation) -> grafana.AnnotationQuery:
    built = grafana.AnnotationQuery().name(annotation.name).datasource(_SOURCE).expr(annotation.query)
    return built.enable(True).icon_color(annotation.colour)


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    built = timeseries.Panel().title(panel.title).description(panel.help).datasource(_SOURCE)
    built = built.span(panel.span).height(_HEIGHT).legend(legend.show_legend(True).calcs(["lastNotNull"]))
    if panel.kind == "stack":
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    if panel.opens is not None:
        title, address = _LINKS[panel.opens]
        built = built.data_links([grafana.DashboardLink(title).url(address)])
    if panel.unit == "percentunit":
        built = built.axis_soft_min(0).axis_soft_max(0.01)  # else nothing at all is drawn on a scale up to 10000 %
    if panel.unit != "money":
        built = built.unit(panel.unit)
    else:
        for currency in CURRENCIES:
            built = built.override_by_regexp(*_sign(currency))
    for number, (query, legend_format) in enumerate(panel.queries):
        built = built.with_target(_target(number, query, legend_format or panel.title).range())
    return built


def _value(panel: Panel) -> stat.Panel:
    built = stat.Panel().title(panel.title).description(panel.help).datasource(_SOURCE)
    built = built.span(panel.span).height(_HEIGHT // 2).no_value("none")
    built = built.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.kind == "name":
        built = built.text_mode(BigValueTextMode.NAME)
    elif any(legend for _, legend in panel.queries):
        built = built.text_mode(BigValueTextMode.VALUE_AND_NAME)
    if panel.unit != "money":
        built = built.unit(panel.unit)
    else:
        for currency in CURRENCIES:
            built = built.override_by_regexp(*_sign(currency))
    for number, (query, legend_format) in enumerate(panel.queries):
        built = built.with_target(_target(number, query, legend_format).instant())
    return built


def _sign(currency: str) -> tuple[str, list[DynamicConfigValue]]:
    """An override for the series whose legend ends with a currency."""
    return f"/\\b{currency}$/", [DynamicConfigValue("unit", f"currency{currency}")]


def _target(number: int, query: str, legend_format: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).legend_format(legend_format).ref_id(chr(ord("A") + number))
