"""Whatever is rendered is what Kubernetes 1.37 takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from support.planner_builders import manifest
from support.pod_templates import pod_templates

from videotrain_api.render.objects import render_objects
from videotrain_api.render.pod import render_pod
from videotrain_api.validation import parse_run

EXAMPLES = sorted((Path(__file__).parents[4] / "manifests/examples").glob("*.yaml"))
RELEASE = "1.37"
FULL_POOL: dict[str, Any] = {
    "gpusPerNode": 8,
    "pricePerGpuHour": "2.00",
    "nodeSelector": {"gpu": "h200"},
    "topologyKeys": ["nvidia.com/gpu.clique", "topology.kubernetes.io/zone"],
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}],
    "rdmaResource": "rdma/hca",
    "rdmaCount": 8,
    "cpu": "96",
    "memory": "1200Gi",
    "priorityClassName": "training",
    "runtimeClassName": "nvidia",
    "schedulerName": "gang",
    "serviceAccountName": "trainer",
    "imagePullSecrets": ["registry"],
    "env": {"NCCL_SOCKET_IFNAME": "eth0"},
}
CACHES = ({}, {"sizeGibibytes": 9}, {"sizeGibibytes": 9, "storageClassName": "nvme"}, {"claimName": "shared"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_objects_of_every_example(path: Path):
    for item in render_objects(parse_run(yaml.safe_load(path.read_text()))):
        assert kubernetes_validate.validate(item, RELEASE, strict=True)


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: "-".join(cache) or "none")
def test_a_pod_that_uses_every_field_of_the_pool(cache: dict[str, Any]):
    body = manifest(pool=FULL_POOL | {"cache": cache}, queue={"name": "team"}, imagePullPolicy="Always")
    body["spec"]["stages"][0]["train"]["parallel"]["microBatchesPerStep"] = 48
    pod = render_pod(parse_run(body), 0, "config", avoid=["bad-node"])
    assert kubernetes_validate.validate(pod, RELEASE, strict=True)


@settings(max_examples=60)
@given(pod_templates)
def test_a_pod_with_a_template(template: dict[str, Any]):
    pod = render_pod(parse_run(manifest(podTemplate=template)), 0, "config", avoid=["bad-node"])
    assert kubernetes_validate.validate(pod, RELEASE, strict=True)
    worker = next(item for item in pod["spec"]["containers"] if item["name"] == "worker")
    assert worker["command"] == ["videotrain-trainer", "agent"]
    assert {"files", "run"} <= {mount["name"] for mount in worker["volumeMounts"]}
    assert {volume["name"] for volume in pod["spec"]["volumes"]} >= {m["name"] for m in worker["volumeMounts"]}
