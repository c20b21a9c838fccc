"""What the chart makes of two sets of values, as files that a person can read; the CRD is compared elsewhere.

After a wanted change: `tox -e golden`, then read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.chart import EVERYTHING, ROOT, Chart, Json, kustomized
from support.golden import REWRITE, written

HERE = Path(__file__).parent / "golden"
CASES: dict[str, Json] = {"defaults": {}, "everything": EVERYTHING}


@pytest.mark.parametrize("case", CASES)
def test_the_release_is_the_one_on_file(chart: Chart, case: str) -> None:
    objects = [item for item in chart.render(CASES[case]) if item["kind"] != "CustomResourceDefinition"]
    path = HERE / f"{case}.yaml"
    if REWRITE:
        path.write_text(written(objects))
    assert yaml.safe_load(path.read_text()) == objects


def test_the_kustomize_base_is_the_chart_with_its_default_values(chart: Chart) -> None:
    path = ROOT / "manifests" / "kustomize" / "operator.yaml"
    head = "# The chart's objects with its default values; `tox -e golden` writes them.\n"
    text = head + "---\n".join(written(each) for each in kustomized(chart))
    if REWRITE:
        path.write_text(text)
    assert path.read_text() == text
