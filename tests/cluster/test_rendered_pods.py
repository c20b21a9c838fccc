"""What is rendered is admitted by a real API server that enforces the restricted Pod Security Standard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.controlplane import Run
from support.planner_builders import manifest, run_of
from support.pod_templates import RESTRICTED, pod_templates

from videotrain_api.render.objects import render_objects
from videotrain_api.render.pod import render_pod
from videotrain_api.validation import parse_run

Json = dict[str, Any]
EXAMPLES = sorted((Path(__file__).parents[2] / "manifests/examples").glob("*.yaml"))
ENFORCED = "pod-security.kubernetes.io/enforce"
CLASSES: list[Json] = [
    {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "vt-test"}, "value": 1},
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "vt-test"}, "handler": "runc"},
]
FULL_POOL: Json = {
    "gpusPerNode": 8,
    "pricePerGpuHour": "2.00",
    "nodeSelector": {"gpu": "h200"},
    "topologyKeys": ["nvidia.com/gpu.clique", "topology.kubernetes.io/zone"],
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}],
    "rdmaResource": "rdma/hca",
    "rdmaCount": 8,
    "cpu": "96",
    "memory": "1200Gi",
    "priorityClassName": "vt-test",
    "runtimeClassName": "vt-test",
    "schedulerName": "gang",
    "imagePullSecrets": ["registry"],
    "env": {"NCCL_SOCKET_IFNAME": "eth0"},
}
CACHES = ({}, {"sizeGibibytes": 9}, {"sizeGibibytes": 9, "storageClassName": "nvme"}, {"claimName": "shared"})


@pytest.fixture
def restricted(kubectl: Run, namespace: str) -> str:
    """A namespace that refuses pods below the restricted standard."""
    kubectl("label", "namespace", namespace, f"{ENFORCED}=restricted", f"{ENFORCED}-version=latest")
    return namespace


def admit(kubectl: Run, namespace: str, objects: list[Json]) -> list[Json]:
    """The objects as the API server would store them."""
    placed = [item | {"metadata": item["metadata"] | {"namespace": namespace}} for item in objects]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": placed})
    done = kubectl("create", "--dry-run=server", "--output=json", "-f", "-", stdin=text)
    assert "Warning" not in done.stderr, done.stderr
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(done.stdout):  # kubectl writes one document after another
        item, end = decoder.raw_decode(done.stdout, at)
        found.append(item)
        at = end + len(done.stdout[end:]) - len(done.stdout[end:].lstrip())
    return found


def test_the_namespace_is_strict(kubectl: Run, restricted: str):
    pod = render_pod(run_of(manifest()), 0, "config")
    pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    done = kubectl("create", "--dry-run=server", "--namespace", restricted, "-f", "-", stdin=json.dumps(
        pod | {"metadata": pod["metadata"] | {"namespace": restricted}}), check=False)  # fmt: skip
    assert done.returncode != 0 and "violates PodSecurity" in done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_objects_of_every_example_are_admitted(path: Path, kubectl: Run, restricted: str):
    run = parse_run(yaml.safe_load(path.read_text()))
    rendered = render_objects(run)
    admitted = [(item["kind"], item["metadata"]["name"]) for item in admit(kubectl, restricted, rendered)]
    assert admitted == [(item["kind"], item["metadata"]["name"]) for item in rendered]
    assert {kind for kind, _ in admitted} == {"ConfigMap", "NetworkPolicy", "Pod"}
    assert len(set(admitted)) == len(admitted)


def test_pods_that_use_every_field_of_the_pool_are_admitted(kubectl: Run, restricted: str):
    for item in CLASSES:
        kubectl("apply", "-f", "-", stdin=json.dumps(item))
    pods = []
    for index, cache in enumerate(CACHES):
        body = manifest(pool=FULL_POOL | {"cache": cache}, queue={"name": "team"}, imagePullPolicy="Always")
        pods.append(render_pod(run_of(body), index, "config", avoid=["bad-1", "bad-2"]))
    for pod in admit(kubectl, restricted, pods):
        (worker,) = pod["spec"]["containers"]
        assert worker["resources"]["requests"] == worker["resources"]["limits"] | {"cpu": "96"}
        assert pod["spec"]["priorityClassName"] == "vt-test" and pod["spec"]["schedulerName"] == "gang"


def test_what_the_server_fills_in_changes_nothing_that_was_rendered(kubectl: Run, restricted: str):
    """A field that the server corrects would be applied again and again."""
    pod = render_pod(run_of(manifest()), 0, "config", avoid=["bad-1"])
    (stored,) = admit(kubectl, restricted, [pod])

    def missing(wanted: Any, there: Any, path: str) -> list[str]:
        if isinstance(wanted, dict) and isinstance(there, dict):
            return [text for key, value in wanted.items() for text in missing(value, there.get(key), f"{path}.{key}")]
        if isinstance(wanted, list) and isinstance(there, list) and len(wanted) <= len(there):
            return [text for n, value in enumerate(wanted) for text in missing(value, there[n], f"{path}[{n}]")]
        return [] if wanted == there else [f"{path}: {wanted!r} became {there!r}"]

    # An emptyDir without settings is stored as an empty mapping, an index as the string that it is.
    assert missing(pod["spec"], stored["spec"], "spec") == []


@settings(
    max_examples=6,
    phases=[Phase.explicit, Phase.generate],  # each example is a conversation with a server, too slow to shrink
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(pod_templates, min_size=12, max_size=12))
def test_pods_with_all_kinds_of_templates_are_admitted(kubectl: Run, restricted: str, templates: list[Json]):
    runs = [parse_run(manifest(podTemplate=template)) for template in templates]
    pods = [render_pod(run, index, "config", avoid=["bad"]) for index, run in enumerate(runs)]
    for pod in admit(kubectl, restricted, pods):
        assert "worker" in [container["name"] for container in pod["spec"]["containers"]]


def test_a_sidecar_needs_the_same_security_as_the_worker(kubectl: Run, restricted: str):
    sidecar = {"name": "logs", "image": "fluent-bit", "securityContext": RESTRICTED}
    run = parse_run(manifest(podTemplate={"spec": {"containers": [sidecar]}}))
    (pod,) = admit(kubectl, restricted, [render_pod(run, 0, "config")])
    assert [container["name"] for container in pod["spec"]["containers"]] == ["worker", "logs"]
