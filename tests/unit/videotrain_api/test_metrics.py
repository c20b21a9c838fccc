"""Metric names and labels follow Prometheus' conventions."""

from __future__ import annotations

import re

import pytest
from support.promtool import check_metrics

from videotrain_api import metrics
from videotrain_api.generate.reference import exit_codes_reference, metrics_reference
from videotrain_api.metrics import CATALOGUE, Metric
from videotrain_api.vocabulary import ExitCode


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_a_series_is_named_by_the_conventions(metric: Metric):
    assert re.fullmatch(r"videotrain_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not metric.unit or metric.unit in metric.name
    assert bool(metric.buckets) == (metric.kind == "histogram") and list(metric.buckets) == sorted(metric.buckets)
    assert metric.help.endswith(".") and "\n" not in metric.help
    assert not {"job", "instance", "le", "quantile"} & set(metric.labels) and len(set(metric.labels)) == len(
        metric.labels
    )


def test_every_constant_is_in_the_catalogue_under_its_name():
    constants = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert list(CATALOGUE) == [metric.name for metric in constants]
    assert {m.emitter for m in CATALOGUE.values()} == {"agent", "operator"}
    assert metrics.emitted_by("agent") + metrics.emitted_by("operator") == list(CATALOGUE.values())


def test_the_reference_lists_every_series_and_exit_code():
    text = metrics_reference()
    assert [name for name in CATALOGUE if f"`{name}`" not in text] == []
    rows = [line for line in exit_codes_reference().splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(ExitCode) and all(not re.search(r"\|\s+\|$", row) for row in rows)


def page() -> str:
    lines: list[str] = []
    for metric in CATALOGUE.values():
        labels = ",".join(f'{label}="x"' for label in metric.labels)
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        if metric.kind != "histogram":
            lines.append(f"{metric.name}{{{labels}}} 1")
            continue
        bounds = [*map(str, metric.buckets), "+Inf"]
        lines += [f'{metric.name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} 1' for bound in bounds]
        lines += [f"{metric.name}_sum{{{labels}}} 1", f"{metric.name}_count{{{labels}}} 1"]
    return "\n".join([*lines, ""])


def test_promtool_accepts_a_page_with_every_series():
    check_metrics(page())
