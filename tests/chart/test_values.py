"""Wrong values are refused with their name, and what the files say about values is true."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml
from support.chart import CHART, EVERYTHING, NAMESPACED, NOTHING, ROOT, Chart, Json, container, of_kind

from videotrain_api.generate.chart_values import ChartValues, RunDefaultValues, chart_files, values_schema
from videotrain_api.render.defaults import parse_defaults
from videotrain_api.resource.run_defaults import RunDefaults

WRONG: list[tuple[Json, str]] = [
    ({"replica": 2}, "replica"),
    ({"replicas": "2"}, "replicas"),
    ({"replicas": 0}, "replicas"),
    ({"image": {"tagg": "x"}}, "tagg"),
    ({"image": {"digest": "abc"}}, "digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"namespaces": "team-a"}, "namespaces"),
    ({"namespaces": ["Team_A"]}, "namespaces"),
    ({"operator": {"logLevel": "loud"}}, "logLevel"),
    ({"operator": {"leaseSeconds": 1}}, "leaseSeconds"),
    ({"operator": {"resyncSeconds": 1.5}}, "resyncSeconds"),
    ({"webhook": {"enabled": "yes"}}, "enabled"),
    ({"webhook": {"failurePolicy": "ignore"}}, "failurePolicy"),
    ({"webhook": {"timeoutSeconds": 31}}, "timeoutSeconds"),
    ({"webhook": {"clientNames": ["a,b"]}}, "clientNames"),
    ({"networkPolicy": {"apiServerPorts": [0]}}, "apiServerPorts"),
    ({"networkPolicy": {"apiServerCIDRs": ["10.0.0.1"]}}, "apiServerCIDRs"),
    ({"monitoring": {"serviceMonitor": {"interval": "fast"}}}, "interval"),
    ({"monitoring": {"prometheus": {}}}, "prometheus"),
    ({"resources": {"limit": {}}}, "limit"),
    ({"pod": {"labels": {"a": 1}}}, "labels"),
    ({"crds": {"keep": "true"}}, "keep"),
    ({"bills": {"uri": "finance/bills"}}, "uri"),
    ({"bills": {"uri": "s3://finance/a//b"}}, "uri"),
    ({"bills": {"endpointUrl": "minio:9000"}}, "endpointUrl"),
    ({"runDefaults": {"imag": "a:1"}}, "imag"),
    ({"runDefaults": {"registry": "https://r.io"}}, "registry"),
    ({"runDefaults": {"startDeadlineSeconds": 0}}, "startDeadlineSeconds"),
    ({"runDefaults": {"enforced": ["images"]}}, "enforced"),
]


@pytest.mark.parametrize("values,named", WRONG, ids=[json.dumps(values) for values, _ in WRONG])
def test_wrong_values_are_refused_by_name(chart: Chart, values: Json, named: str) -> None:
    done = chart.template(values)
    assert done.returncode != 0
    assert named in done.stderr
    assert "values" in done.stderr


@pytest.mark.parametrize("values", [{}, EVERYTHING, NAMESPACED, NOTHING, {"global": {"registry": "x"}}])
def test_right_values_fit_the_schema(values: Json) -> None:
    jsonschema.validate(values, values_schema())


def test_values_file_holds_every_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values == ChartValues().model_dump(by_alias=True, mode="json")


def test_every_value_is_explained() -> None:
    previous = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            assert previous.lstrip().startswith("#"), f"nothing stands above {line!r}"
        previous = line


def test_objects_are_closed() -> None:
    schema = values_schema()
    for name, model in {"(all)": schema, **schema["definitions"]}.items():
        assert model["additionalProperties"] is False, name


def test_generated_files_are_current() -> None:
    for path, text in chart_files().items():
        assert (ROOT / path).read_text() == text, path


def test_the_chart_has_a_copy_of_the_crds() -> None:
    for path in (ROOT / "manifests" / "crds").glob("*.yaml"):
        assert (CHART / "files" / "crds" / path.name).read_text() == path.read_text()


def test_old_clusters_are_refused(chart: Chart) -> None:
    assert chart.template({}, "--kube-version", "1.31.0").returncode == 0
    done = chart.template({}, "--kube-version", "1.30.9")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr


def test_the_defaults_for_runs_reach_the_operator_as_they_were_given(chart: Chart) -> None:
    for values, expected in (
        ({}, {"startDeadlineSeconds": 86_400}),
        ({"runDefaults": {"startDeadlineSeconds": None}}, {}),
        (EVERYTHING, EVERYTHING["runDefaults"]),
    ):
        objects = chart.render(values)
        (config_map,) = [one for one in of_kind(objects, "ConfigMap") if "defaults.json" in one.get("data", {})]
        given = json.loads(config_map["data"]["defaults.json"])
        assert given == expected
        assert parse_defaults(given).held() is not None or not given
        assert f"--run-defaults={config_map['metadata']['name']}" in container(objects)["args"]


def test_what_is_not_there_cannot_be_enforced(chart: Chart) -> None:
    done = chart.template({"runDefaults": {"enforced": ["tolerations", "image"]}})
    assert done.returncode != 0
    assert "runDefaults.enforced: image: there is no such default to enforce; set runDefaults.image" in done.stderr


def test_the_chart_knows_every_default_for_runs() -> None:
    assert set(RunDefaultValues.model_fields) == set(RunDefaults.model_fields)
