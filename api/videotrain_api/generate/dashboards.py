"""Grafana's JSON of the boards, through the Grafana Foundation SDK."""

from __future__ import annotations

from itertools import count
from typing import Final

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueTextMode, LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    VariableRefresh,
    VariableSort,
)

from videotrain_api.generate.boards.fleet import FLEET
from videotrain_api.generate.boards.operator import OPERATOR
from videotrain_api.generate.boards.run import RUN
from videotrain_api.generate.panels import Board, Panel
from videotrain_api.metrics import RUN_INFO

BOARDS: Final = (FLEET, RUN, OPERATOR)
FOLDER: Final = "charts/videotrain/files/dashboards"
TAG: Final = "videotrain"
"""Every board has it; the boards link to each other by it."""
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT: Final = 8
"""Rows of Grafana's grid that a panel takes."""


def dashboard_files() -> dict[str, str]:
    """Content of every dashboard by its path in the repository; a file has the name of its board's uid."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{FOLDER}/{board.uid}.json": encoder.encode(_dashboard(board).build()) + "\n" for board in BOARDS}


def _dashboard(board: Board) -> grafana.Dashboard:
    built = grafana.Dashboard(board.title).uid(board.uid).tags([TAG]).readonly()
    built = built.timezone("browser").time("now-6h", "now").refresh("30s")
    others = grafana.DashboardLink("videotrain").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    built = built.link(others.as_dropdown(True).include_vars(True).keep_time(True))
    built = built.with_variable(grafana.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for name in board.variables:
        # A board of one run picks one of each; the others show all namespaces until some are chosen.
        labels = f'{RUN_INFO.name}{{namespace="$namespace"}}' if name == "run" else RUN_INFO.name
        variable = grafana.QueryVariable(name).label(name).datasource(_SOURCE).query(f"label_values({labels}, {name})")
        variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
        if "run" not in board.variables:
            variable = variable.multi(True).include_all(True).all_value(".*")
        built = built.with_variable(variable)
    numbers = count(1)
    for title, panels in board.rows:
        built = built.with_row(grafana.Row(title).id(next(numbers)))
        for panel in panels:
            drawn = _value(panel) if panel.kind in ("number", "name") else _lines(panel)
            built = built.with_panel(drawn.id(next(numbers)))
    return built


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    built = timeseries.Panel().title(panel.title).description(panel.help).datasource(_SOURCE).unit(panel.unit)
    built = built.span(panel.span).height(_HEIGHT).legend(legend.show_legend(True).calcs(["lastNotNull"]))
    if panel.kind == "stack":
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    if panel.links_to_run:
        where = "var-namespace=${__field.labels.namespace}&var-run=${__field.labels.run}"
        link = grafana.DashboardLink("this run").url(f"/d/{RUN.uid}?{where}&${{__url_time_range}}")
        built = built.data_links([link])
    for number, (query, legend_format) in enumerate(panel.queries):
        built = built.with_target(_target(number, query, legend_format).range())
    return built


def _value(panel: Panel) -> stat.Panel:
    built = stat.Panel().title(panel.title).description(panel.help).datasource(_SOURCE).unit(panel.unit)
    built = built.span(panel.span).height(_HEIGHT // 2).no_value("none")
    built = built.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.kind == "name":
        built = built.text_mode(BigValueTextMode.NAME)
    elif any(legend for _, legend in panel.queries):
        built = built.text_mode(BigValueTextMode.VALUE_AND_NAME)
    for number, (query, legend_format) in enumerate(panel.queries):
        built = built.with_target(_target(number, query, legend_format).instant())
    return built


def _target(number: int, query: str, legend_format: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).legend_format(legend_format).ref_id(chr(ord("A") + number))
