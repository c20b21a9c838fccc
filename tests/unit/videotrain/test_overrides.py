"""`--set PATH=VALUE`: fields of a manifest that a command line gives other values."""

from __future__ import annotations

from typing import Any

import pytest
from support.planner_builders import manifest, train_stage

from videotrain.errors import UsageError
from videotrain.overrides import set_field


@pytest.fixture
def document() -> dict[str, Any]:
    return manifest(stages=[train_stage("first"), train_stage("second")])


def test_a_field_is_found_by_its_path_with_and_without_spec(document: dict[str, Any]) -> None:
    set_field(document, "nodes.max=4")
    set_field(document, "spec.seed=7")
    set_field(document, "metadata.name=other")
    assert (document["spec"]["nodes"]["max"], document["spec"]["seed"], document["metadata"]["name"]) == (4, 7, "other")


@pytest.mark.parametrize("place", ["[1]", "[second]"])
def test_a_place_in_a_list_is_counted_or_named(document: dict[str, Any], place: str) -> None:
    set_field(document, f"stages{place}.train.steps=40")
    assert [stage["train"]["steps"] for stage in document["spec"]["stages"]] == [100, 40]


def test_a_text_stays_a_text_and_what_is_missing_is_made(document: dict[str, Any]) -> None:
    set_field(document, "pool.pricePerGpuHour=2.00")
    set_field(document, "budget.maxCost=5")
    set_field(document, "pool.nodeSelector.gpu=1")
    spec = document["spec"]
    assert (spec["pool"]["pricePerGpuHour"], spec["budget"], spec["pool"]["nodeSelector"]) == (
        "2.00",
        {"maxCost": "5"},
        {"gpu": "1"},
    )


def test_a_key_with_dots_stands_in_brackets(document: dict[str, Any]) -> None:
    set_field(document, "metadata.labels[videotrain.dev/team]=video")
    set_field(document, "pool.nodeSelector[nvidia.com/gpu.product]=1")
    set_field(document, "spec[pool][nodeSelector][zone]=a")
    set_field(document, "metadata.labels[old.example/x]=y")
    set_field(document, "metadata.labels[old.example/x]=null")
    assert document["metadata"]["labels"] == {"videotrain.dev/team": "video"}
    assert document["spec"]["pool"]["nodeSelector"] == {"nvidia.com/gpu.product": "1", "zone": "a"}
    del document["spec"]["stages"]
    with pytest.raises(UsageError, match=r"\[0\] is a place in a list, and there is none"):
        set_field(document, "stages[0].name=x")


def test_a_value_is_yaml_and_null_removes(document: dict[str, Any]) -> None:
    set_field(document, "nodes={min: 1, max: 3}")
    set_field(document, "stages[0].train.optimizer.learningRate=[{value: 3.0e-4}]")
    assert document["spec"]["nodes"] == {"min": 1, "max": 3}
    assert document["spec"]["stages"][0]["train"]["optimizer"]["learningRate"] == [{"value": 3e-4}]
    set_field(document, "nodes.max=null")
    set_field(document, "stages[0]=null")
    assert document["spec"]["nodes"] == {"min": 1}
    assert [stage["name"] for stage in document["spec"]["stages"]] == ["second"]


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("nodes.max", "PATH=VALUE is needed"),
        ("=4", "PATH=VALUE is needed"),
        ("nodes..max=4", "PATH=VALUE is needed"),
        ("nodes.max=[1", "not valid YAML"),
        ("stages[2].name=x", r"allowed: 0 to 1, or a name \(first, second\)"),
        ("stages.name=x", r"a place in a list is \[0\] or \[NAME\]|is not in a mapping"),
        ("nodes[0]=x", "there is none"),
    ],
)
def test_what_is_no_place_or_no_value_is_told(document: dict[str, Any], assignment: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        set_field(document, assignment)
