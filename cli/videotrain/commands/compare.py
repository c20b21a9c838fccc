"""`videotrain compare A B`: two runs side by side, of working directories or of a cluster."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from videotrain.commands.cluster_runs import ClusterChoice, named, read_runs
from videotrain.commands.get import local_runs
from videotrain.commands.plan_tables import new_table
from videotrain.files import replace_file
from videotrain.report.curves import stage_curves
from videotrain.report.page import chart_page
from videotrain.report.workdir import read_records
from videotrain.wording import BUCKET_LABELS
from videotrain_api.cost.forecast import forecast
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json


class Side(NamedTuple):
    """One of the two runs."""

    label: str
    run: Json
    status: RunStatus
    curves: list[Json]
    """Of the stages that have records; none of a run in a cluster."""


class Row(NamedTuple):
    """One fact of both; None where it is not known."""

    group: str
    what: str
    values: tuple[Any, Any]


def compare(names: tuple[str, str], where: ClusterChoice, page: Path | None, *, as_json: bool) -> int:
    """Print what two runs have in common and what not.

    Args:
        names: working directories of `local`, or NAMESPACE/NAME of a cluster's run, or NAME in its namespace.
        where: the cluster.
        page: where to write a page with their curves.
        as_json: machine-readable output.

    Raises:
        ManifestFileError: a folder holds no run.
        UsageError: there is no such run, or the cluster cannot be asked.
    """
    sides = [_side(name, where) for name in names]
    rows = [*_spec_rows(sides[0].run["spec"], sides[1].run["spec"]), *_plan_rows(sides), *_bill_rows(sides)]
    if page is not None:
        replace_file(page, _page(sides, rows))
    if as_json:
        found = [{"group": row.group, "what": row.what, "a": row.values[0], "b": row.values[1]} for row in rows]
        document: Json = {"a": sides[0].label, "b": sides[1].label, "rows": found}
        document["curves"] = {"a": sides[0].curves, "b": sides[1].curves}
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=130)
    for group in dict.fromkeys(row.group for row in rows):
        table = new_table(group, ("",), (sides[0].label, sides[1].label, "B to A"))
        for row in rows:
            if row.group == group:
                table.add_row(row.what, *map(_shown, row.values), _change(row))
        console.print(table)
    return 0


def _side(name: str, where: ClusterChoice) -> Side:
    folder = Path(name)
    if folder.is_dir():
        run, records = local_runs(folder)[0], read_records(folder)
        status = read_status(run.get("status")).status
        curves = [found for stage in status.stages if (found := stage_curves(stage.name, records))]
        return Side(name, run, status, curves)
    run = named(asyncio.run(read_runs(where)), name, "no such folder, and ")
    return Side(name, run, read_status(run.get("status")).status, [])


def _spec_rows(a: Json, b: Json) -> Iterator[Row]:
    """The fields of the two manifests that differ."""
    left, right = (dict(_leaves(spec)) for spec in (a, b))
    for path in dict.fromkeys([*left, *right]):
        if left.get(path) != right.get(path):
            yield Row("Fields that differ", f"spec.{path}", (left.get(path), right.get(path)))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{path}[{each.get('name', index)}]")
    else:
        yield path, value


def _plan_rows(sides: list[Side]) -> Iterator[Row]:
    """What `plan` models of each stage."""
    plans = [forecast(VideoTrainingRun.from_wire(side.run)) for side in sides]
    stages = [{stage.name: stage for stage in plan.stages} for plan in plans]
    for name in dict.fromkeys(name for found in stages for name in found):
        for what in ("gpus", "seconds_per_step", "gpu_days"):
            values = [getattr(found[name], what) if name in found else None for found in stages]
            yield Row("Plan, modelled", f"{name}: {what.replace('_', ' ')}", (values[0], values[1]))
    yield Row("Plan, modelled", "total cost", (float(plans[0].total_cost), float(plans[1].total_cost)))


def _bill_rows(sides: list[Side]) -> Iterator[Row]:
    a, b = [side.status.cost for side in sides]
    group = "Bill"
    yield Row(group, "phase", (sides[0].status.phase, sides[1].status.phase))
    yield Row(group, "currency", (a and a.currency, b and b.currency))
    yield Row(group, "total", (a and a.total_micros / 1e6, b and b.total_micros / 1e6))
    yield Row(group, "forecast", (a and a.forecast and float(a.forecast), b and b.forecast and float(b.forecast)))
    yield Row(group, "goodput, %", (a and a.goodput_percent, b and b.goodput_percent))
    for bucket, label in BUCKET_LABELS.items():
        amounts = [cost.micros_by_bucket.get(bucket, 0) / 1e6 if cost else None for cost in (a, b)]
        if any(amounts):
            yield Row(group, label, (amounts[0], amounts[1]))
    stages = [{stage.name: stage.total_micros / 1e6 for stage in cost.stages} if cost else {} for cost in (a, b)]
    for name in dict.fromkeys(name for found in stages for name in found):
        yield Row(group, f"stage {name}", (stages[0].get(name), stages[1].get(name)))
    for cause in sides[0].status.restarts.model_dump():
        counts = [side.status.restarts.model_dump()[cause] for side in sides]
        yield Row(group, f"restarts, {cause}", (counts[0], counts[1]))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _change(row: Row) -> str:
    a, b = row.values
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return f"{b / a - 1:+.1%}" if numbers and a else ""


def _page(sides: list[Side], rows: list[Row]) -> str:
    charts: list[Json] = []
    for stage in dict.fromkeys(curve["stage"] for side in sides for curve in side.curves):
        of_stage = [(side.label, curve) for side in sides for curve in side.curves if curve["stage"] == stage]
        lines = [{"name": label, **curve["smooth"]} for label, curve in of_stage]
        charts.append({"title": f"{stage}: loss, smoothed", "x": "step", "y": "loss", "lines": lines})
    groups = dict.fromkeys(row.group for row in rows)
    headings = ("", sides[0].label, sides[1].label, "B to A")
    tables = [
        (group, headings, [(row.what, *map(_shown, row.values), _change(row)) for row in rows if row.group == group])
        for group in groups
    ]
    totals = [side.status.cost.total if side.status.cost else "-" for side in sides]
    cards = [(side.label, total, side.status.phase) for side, total in zip(sides, totals, strict=True)]
    return chart_page(f"{sides[0].label} and {sides[1].label}", "Two runs side by side.", cards, charts, tables)
