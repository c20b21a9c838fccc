"""Objects that a person can read: each folder holds a run and what is created for it on an empty cluster.

`run.yaml`      the run; `spec` is laid over a small default manifest (support.planner_builders.manifest).
`objects.yaml`  the service, the config map (names of its files only) and the first worker pod.

After a wanted change: `tox -e golden`, then read the diff.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.golden import REWRITE, written
from support.planner_builders import manifest

from videotrain_api.render.objects import render_objects
from videotrain_api.validation import parse_run

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/run.yaml"))
RELEASE = "1.37"


def rendered(case: str) -> list[dict[str, Any]]:
    given = yaml.safe_load((HERE / case / "run.yaml").read_text())
    body = manifest(**given["spec"])
    body["metadata"] |= given.get("metadata", {})
    if "microBatchesPerStep" in given:
        body["spec"]["stages"][0]["train"]["parallel"]["microBatchesPerStep"] = given["microBatchesPerStep"]
    return render_objects(parse_run(body))


def readable(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One pod stands for all, and a frozen configuration for its name: its content is compared elsewhere."""
    short = [item | {"data": sorted(item["data"])} if item["kind"] == "ConfigMap" else item for item in objects]
    return [item for item in short if item["kind"] != "Pod" or item["metadata"]["name"].endswith("-w0")]


@pytest.mark.parametrize("case", CASES)
def test_the_objects_are_those_on_file(case: str) -> None:
    objects = rendered(case)
    for item in objects:
        assert kubernetes_validate.validate(item, RELEASE, strict=True)
    path = HERE / case / "objects.yaml"
    found = readable(objects)
    if REWRITE:
        path.write_text(written(found))
    assert yaml.safe_load(path.read_text()) == found


@pytest.mark.parametrize("case", CASES)
def test_every_further_pod_differs_by_its_number_alone(case: str) -> None:
    first, *more = [item for item in rendered(case) if item["kind"] == "Pod"]
    for number, pod in enumerate(more, start=1):
        text = written([pod]).replace(f"-w{number}", "-w0")
        (same,) = yaml.safe_load(text.replace(f"index: '{number}'", "index: '0'"))
        assert pod["metadata"]["labels"]["videotrain.dev/index"] == str(number)
        assert same == first
