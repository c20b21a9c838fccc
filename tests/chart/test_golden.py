"""What the chart makes of two sets of values, as files that a person can read; the CRD is compared elsewhere.

After a wanted change: `tox -e golden`, then read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.chart import EVERYTHING, Chart, Json
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
