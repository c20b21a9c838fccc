"""The CRD is structural, documented, bounded, and its rules protect what must not change."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from videotrain_api.crd.cel_rules import RULES
from videotrain_api.crd.definition import custom_resource_definition, root_schema
from videotrain_api.generate import files
from videotrain_api.generate.reference import reachable_models
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import VideoTrainingRunSpec

ROOT = Path(__file__).parents[4]
EXAMPLES = sorted((ROOT / "manifests/examples").glob("*.yaml"))


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from nodes(schema[word], f"{path}.{word}")


def test_the_crd_is_a_valid_kubernetes_object():
    assert kubernetes_validate.validate(custom_resource_definition(), "1.37", strict=True)


def test_the_schema_is_structural():
    words = {"$ref", "anyOf", "oneOf", "allOf", "not", "const", "title", "definitions", "$defs", "examples"}
    for path, node in nodes(root_schema()):
        assert not words & set(node), path
        assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert not {"properties", "additionalProperties"} <= set(node), path
        assert ("items" in node) == (node["type"] == "array"), path
        assert not isinstance(node.get("additionalProperties"), bool), path
        assert node.get("exclusiveMinimum", True) is True and node.get("exclusiveMaximum", True) is True, path


def test_every_object_has_fields_or_keeps_unknown_ones():
    for path, node in nodes(root_schema()):
        if node["type"] == "object":
            words = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
            assert len(words & set(node)) == 1, path


def test_every_field_is_described():
    for path, node in nodes(root_schema()):
        if not path.startswith(".metadata") and not path.endswith((".items", ".additionalProperties")):
            assert node.get("description"), path


def test_defaults_are_told_in_words_since_explain_does_not_show_them():
    pool = root_schema()["properties"]["spec"]["properties"]["pool"]["properties"]
    assert pool["gpuResource"]["description"].endswith(" Default: nvidia.com/gpu.")
    assert root_schema()["properties"]["spec"]["properties"]["suspend"]["description"].endswith(" Default: false.")


def test_it_is_small_enough_for_a_plain_apply():
    """kubectl keeps the last applied object in an annotation. All annotations together hold 256 KiB, of which a quarter
    is left to others.
    """
    assert len(json.dumps(custom_resource_definition(), separators=(",", ":"))) < 192 * 1024


def test_every_field_of_every_model_in_a_manifest_is_documented():
    for model in reachable_models(VideoTrainingRunSpec):
        assert model.__doc__, model
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_lists_that_rules_walk_over_are_bounded():
    for path, node in nodes(root_schema()["properties"]["spec"]):
        items = node.get("items", {})
        if (
            node["type"] == "array"
            and list(nodes(items))
            and any("x-kubernetes-validations" in n for _, n in nodes(items))
        ):
            assert "maxItems" in node, path


def test_stages_and_conditions_are_merged_by_their_key():
    spec, status = (root_schema()["properties"][name]["properties"] for name in ("spec", "status"))
    assert spec["stages"]["x-kubernetes-list-map-keys"] == ["name"]
    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert spec["stages"]["x-kubernetes-list-type"] == status["conditions"]["x-kubernetes-list-type"] == "map"


def test_every_rule_stands_in_the_crd():
    found = {rule["rule"] for _, node in nodes(root_schema()) for rule in node.get("x-kubernetes-validations", [])}
    assert found == {rule.rule for rules in RULES.values() for rule in rules}


def test_every_blamed_field_exists():
    for path, node in nodes(root_schema()):
        for rule in node.get("x-kubernetes-validations", []):
            place = node
            for name in filter(None, rule.get("fieldPath", "").split(".")):
                assert name in place["properties"], (path, rule)
                place = place["properties"][name]


def test_printer_columns_point_at_status_fields():
    version = custom_resource_definition()["spec"]["versions"][0]
    names = [column["name"] for column in version["additionalPrinterColumns"]]
    assert names[:8] == ["Phase", "Stage", "Step", "Nodes", "Stepped", "MFU", "Cost", "Age"]
    assert not any("priority" in column for column in version["additionalPrinterColumns"][:8])
    for column in version["additionalPrinterColumns"]:
        place = version["schema"]["openAPIV3Schema"]
        if column["jsonPath"].startswith(".status"):
            for name in column["jsonPath"].strip(".").split("."):
                place = place["properties"][name]
            assert {"date": "string"}.get(column["type"], column["type"]) == place["type"]


def test_an_empty_status_fits_the_schema(admission, manifest):
    assert admission.refusals(manifest | {"status": RunStatus().to_wire()}) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_admitted_and_may_be_applied_again(path, admission):
    manifest = yaml.safe_load(path.read_text())
    assert admission.refusals(manifest) == []
    assert admission.refusals(manifest, old=copy.deepcopy(manifest)) == []


def free(spec: dict[str, Any]) -> None:
    spec["nodes"] = {"min": 1, "max": 1}
    spec["stages"][3]["nodes"] = {"min": 1, "max": 1}
    spec["budget"] = {"maxCost": "9.00"}
    spec["suspend"] = True
    spec["elasticity"] = {"minGainSeconds": 7}
    policy = {"limits": {"hang": 9}, "sameStepLimit": 7, "rules": [{"action": "Restart"}]}
    spec["failurePolicy"] = policy
    spec["activeDeadlineSeconds"] = spec["startDeadlineSeconds"] = 60
    spec["ttlSecondsAfterFinished"] = 60


def test_limits_and_suspension_may_change_while_running(admission, manifest):
    old = copy.deepcopy(manifest)
    free(manifest["spec"])
    assert admission.refusals(manifest, old) == []


CHANGES = {
    "seed": lambda spec: spec.update(seed=7),
    "dataset": lambda spec: spec["dataset"].update(videos="file:///other"),
    "storage": lambda spec: spec["storage"].update(region="eu-west-1"),
    "model": lambda spec: spec["model"].update(numHeads=8),
    "autoencoder": lambda spec: spec["autoencoder"].update(scalingFactor=2.0),
    "textEncoder": lambda spec: spec.update(textEncoder={"maxTokens": 7}),
    "failurePolicy.hangSeconds": lambda spec: spec.update(failurePolicy={"hangSeconds": 7}),
    "failurePolicy.graceSeconds": lambda spec: spec.update(failurePolicy={"graceSeconds": 7}),
    "stages": lambda spec: spec["stages"].append(spec["stages"][4] | {"name": "again"}),
}


@pytest.mark.parametrize("field", CHANGES)
def test_everything_else_is_fixed_once_the_run_exists(field, admission, manifest):
    old = copy.deepcopy(manifest)
    CHANGES[field](manifest["spec"])
    refusals = admission.refusals(manifest, old)
    assert [text for text in refusals if text.startswith(f"spec.{field}:")], refusals
    assert all("cannot" in text for text in refusals), refusals
    assert admission.refusals(manifest) == []


WHILE_NO_PODS = {
    "image": lambda spec: spec.update(image="other/image:1"),
    "imagePullPolicy": lambda spec: spec.update(imagePullPolicy="Always"),
    "pool": lambda spec: spec["pool"].update(pricePerGpuHour="1.00", nodeSelector={"gpu": "b200"}),
    "queue": lambda spec: spec.update(queue={"name": "later"}),
}


@pytest.mark.parametrize("field", WHILE_NO_PODS)
def test_what_shapes_the_pods_may_change_only_while_there_are_none(field, admission, manifest):
    changed = copy.deepcopy(manifest)
    WHILE_NO_PODS[field](changed["spec"])

    def refused(*, suspend: bool, phase: str) -> bool:
        old = copy.deepcopy(manifest) | {"status": RunStatus(phase=phase).to_wire()}
        old["spec"]["suspend"] = suspend
        texts = admission.refusals(changed | {"status": old["status"]}, old)
        assert all(text.startswith(f"spec.{field}: {field} cannot change while") for text in texts), texts
        return bool(texts)

    assert not refused(suspend=True, phase="Suspended")
    assert not refused(suspend=False, phase="Invalid"), "it was never accepted, so it has no pods"
    assert refused(suspend=False, phase="Running") and refused(suspend=True, phase="Suspending")
    assert refused(suspend=False, phase="Suspended"), "it is resuming already"


STAGES = {
    "train": lambda stages: stages[3]["train"].update(steps=7),
    "curate": lambda stages: stages[0]["curate"].update(minSeconds=1),
    "nodes": lambda stages: stages[3].update(nodes={"min": 1, "max": 1}),
}


@pytest.mark.parametrize("what", STAGES)
def test_what_stages_do_may_change_at_any_time(what, admission, manifest):
    def refusals(*, suspend: bool, phase: str) -> list[str]:
        old = copy.deepcopy(manifest) | {"status": RunStatus(phase=phase).to_wire()}
        old["spec"]["suspend"] = suspend
        new = copy.deepcopy(old)
        STAGES[what](new["spec"]["stages"])
        return admission.refusals(new, old)

    assert refusals(suspend=True, phase="Suspended") == []
    for suspend, phase in ((False, "Running"), (True, "Suspending"), (False, "Suspended")):
        assert refusals(suspend=suspend, phase=phase) == [], "the operator judges it, and takes it at a checkpoint"


@pytest.mark.parametrize("change", [{"gpusPerNode": 1}, {"gpuResource": "amd.com/gpu"}, {"currency": "EUR"}])
def test_not_even_a_suspended_run_changes_what_its_bill_rests_on(change, admission, manifest):
    old = manifest | {"status": RunStatus(phase="Suspended").to_wire(), "spec": manifest["spec"] | {"suspend": True}}
    new = copy.deepcopy(old)
    new["spec"]["pool"] |= change
    (text,) = admission.refusals(new, old)
    assert text.startswith(f"spec.pool.{next(iter(change))}:") and "cannot change" in text


BARE = {"gpusPerNode": 0, "pricePerNodeHour": "1.60", "nodeSelector": {"class": "cpu"}}


@pytest.fixture
def pooled(manifest):
    manifest["spec"]["stages"][0]["pool"] = copy.deepcopy(BARE)
    return manifest


def test_the_pool_of_a_stage_may_change_only_while_there_are_no_pods(admission, pooled):
    def refusals(change: dict, *, suspend: bool, phase: str) -> list[str]:
        old = copy.deepcopy(pooled) | {"status": RunStatus(phase=phase).to_wire()}
        old["spec"]["suspend"] = suspend
        new = copy.deepcopy(old)
        new["spec"]["stages"][0]["pool"] |= change
        return admission.refusals(new, old)

    dearer = {"pricePerNodeHour": "2.00", "nodeSelector": {"class": "other"}}
    assert refusals(dearer, suspend=True, phase="Suspended") == []
    (text,) = refusals(dearer, suspend=False, phase="Running")
    assert text.startswith("spec.stages: the pool of a stage cannot change while")
    assert refusals({}, suspend=False, phase="Running") == []
    for change in ({"gpuResource": "amd.com/gpu"}, {"gpusPerNode": 4, "pricePerGpuHour": "1.00"}):
        assert any("cannot change" in text for text in refusals(change, suspend=True, phase="Suspended"))


def test_a_stage_neither_gets_nor_loses_a_pool(admission, pooled):
    without = copy.deepcopy(pooled)
    del without["spec"]["stages"][0]["pool"]
    for new, old in ((pooled, without), (without, pooled)):
        rested = {"status": RunStatus(phase="Suspended").to_wire(), "spec": old["spec"] | {"suspend": True}}
        assert any("cannot get or lose" in text for text in admission.refusals(new | {"status": {}}, old | rested))


def test_stages_cannot_be_moved(admission, manifest):
    old = copy.deepcopy(manifest)
    manifest["spec"]["stages"].append(manifest["spec"]["stages"][4] | {"name": "again"})
    other = copy.deepcopy(manifest)
    other["spec"]["stages"][4], other["spec"]["stages"][5] = other["spec"]["stages"][5], other["spec"]["stages"][4]
    assert admission.refusals(manifest) == admission.refusals(other) == []
    assert admission.refusals(other, manifest) and admission.refusals(old, manifest)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a repository that holds nothing but the examples."""
    shutil.copytree(ROOT / "manifests/examples", tmp_path / "manifests/examples")
    return tmp_path


def test_generated_files_are_written_once_and_then_current(root):
    assert set(files.write_files(root)) == set(files.generated_files(root))
    assert files.stale_files(root) == [] and files.write_files(root) == []


def test_check_fails_and_names_the_command_when_a_file_is_stale(root):
    files.write_files(root)
    (root / "docs/reference/api.md").write_text("old")
    command = [sys.executable, "-m", "videotrain_api.generate", "check", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "docs/reference/api.md is stale" in done.stderr and files.COMMAND in done.stderr


def test_the_generated_crd_reads_back_as_the_same_object():
    text = files.generated_files(ROOT)["manifests/crds/videotrainingruns.videotrain.dev.yaml"]
    assert yaml.safe_load(text) == custom_resource_definition()
    assert "&id" not in text
