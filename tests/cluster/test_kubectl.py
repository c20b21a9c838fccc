"""The resource as people meet it: kubectl apply, get, explain, scale, edit and wait against a real API server."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.controlplane import CRDS, Run
from support.planner_builders import manifest, train_stage

from videotrain_api.crd.definition import custom_resource_definition, root_schema
from videotrain_api.resource.status import (
    ConditionStatus,
    CostStatus,
    NodesStatus,
    RunStatus,
    StageStatus,
    ThroughputStatus,
    columns_of,
)

Json = dict[str, Any]
Edit = Callable[[Json], None]
EXAMPLES = sorted((Path(__file__).parents[2] / "manifests/examples").glob("*.yaml"))
NAME = "videotrainingruns.videotrain.dev"


def body(**spec: Any) -> Json:
    """A run that every rule accepts, as a file would hold it."""
    made = manifest(**({"nodes": {"min": 1, "max": 2}, "failurePolicy": {"limits": {"hang": 1}}} | spec))
    made["metadata"] = {"name": "demo"}
    return made


class Client:
    """kubectl in a namespace."""

    def __init__(self, kubectl: Run, namespace: str) -> None:
        self.kubectl = kubectl
        self.namespace = namespace

    def __call__(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.kubectl("--namespace", self.namespace, *arguments, **more)

    def apply(self, made: Json) -> None:
        self("apply", "-f", "-", stdin=json.dumps(made))

    def refusal(self, *arguments: str, **more: Any) -> str:
        done = self(*arguments, check=False, **more)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def edit(self, made: Json, change: Edit, **more: Any) -> subprocess.CompletedProcess[str]:
        """Replace the whole object, as an editor does."""
        new = copy.deepcopy(made)
        change(new["spec"])
        return self("replace", "-f", "-", "--dry-run=server", stdin=json.dumps(new), **more)

    def status(self, status: Json) -> None:
        self("patch", "vtr/demo", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))

    def read(self) -> Json:
        return dict(json.loads(self("get", "vtr/demo", "-o", "json").stdout))


@pytest.fixture
def client(kubectl: Run, namespace: str) -> Client:
    return Client(kubectl, namespace)


@pytest.fixture
def made(client: Client) -> Json:
    """A run in the cluster."""
    client.apply(body())
    return body()


def test_the_crd_takes_a_plain_apply_and_the_server_likes_it(kubectl: Run):
    """Again and again: the last applied object fits into its annotation, and nothing is said about the schema."""
    kubectl("apply", "-f", str(CRDS))
    again = kubectl("apply", "-f", str(CRDS))
    assert "unchanged" in again.stdout and again.stderr == ""
    crd = json.loads(kubectl("get", "crd", NAME, "-o", "json").stdout)
    conditions = {item["type"]: item["status"] for item in crd["status"]["conditions"]}
    assert conditions["Established"] == "True" and "NonStructuralSchema" not in conditions
    assert crd["status"]["storedVersions"] == ["v1alpha1"]
    kept = crd["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
    assert json.loads(kept)["spec"] == custom_resource_definition()["spec"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_applied_and_applied_again(path: Path, client: Client):
    assert "created" in client("apply", "-f", str(path)).stdout
    first = json.loads(client("get", "-f", str(path), "-o", "json").stdout)["metadata"]
    client("apply", "-f", str(path))
    client("apply", "--server-side", "--force-conflicts", "-f", str(path))
    again = json.loads(client("get", "-f", str(path), "-o", "json").stdout)["metadata"]
    assert (again["uid"], again["generation"]) == (first["uid"], 1)


def test_a_misspelled_field_is_named(client: Client):
    spec = body()["spec"]
    text = client.refusal("apply", "-f", "-", stdin=json.dumps(body() | {"spec": spec | {"sede": 1}}))
    assert 'unknown field "spec.sede"' in text


FIXED: dict[str, Edit] = {
    "seed": lambda spec: spec.update(seed=7),
    "dataset": lambda spec: spec["dataset"].update(latents="s3://other/latents"),
    "storage": lambda spec: spec["storage"].update(region="eu-west-1"),
    "model": lambda spec: spec["model"].update(weights="s3://other/weights"),
    "autoencoder": lambda spec: spec["autoencoder"].update(scalingFactor=2.0),
    "textEncoder": lambda spec: spec["textEncoder"].update(maxTokens=7),
    "failurePolicy.hangSeconds": lambda spec: spec.update(failurePolicy={"hangSeconds": 7}),
    "failurePolicy.startSeconds": lambda spec: spec.update(failurePolicy={"startSeconds": 7}),
    "failurePolicy.graceSeconds": lambda spec: spec.update(failurePolicy={"graceSeconds": 7}),
    "stages": lambda spec: spec["stages"].append(train_stage("again")),
    "pool.gpuResource": lambda spec: spec["pool"].update(gpuResource="amd.com/gpu"),
    "pool.currency": lambda spec: spec["pool"].update(currency="EUR"),
}
WHILE_NO_PODS: dict[str, Edit] = {
    "image": lambda spec: spec.update(image="other/image:1"),
    "imagePullPolicy": lambda spec: spec.update(imagePullPolicy="Always"),
    "pool": lambda spec: spec["pool"].update(
        pricePerGpuHour="1.00", nodeSelector={"gpu": "b200"}, tolerations=[{"key": "gpu", "operator": "Exists"}]
    ),
    "queue": lambda spec: spec.update(queue={"name": "later"}),
}
LIVE: dict[str, Edit] = {
    "nodes": lambda spec: spec.update(nodes={"min": 2, "max": 4}),
    "stages[0].nodes": lambda spec: spec["stages"][0].update(nodes={"min": 1, "max": 1}),
    "stages[0].train": lambda spec: spec["stages"][0]["train"].update(steps=7),
    "checkpoint": lambda spec: spec.update(checkpoint={"everySteps": 7}),
    "budget": lambda spec: spec.update(budget={"maxCost": "900.00"}),
    "elasticity": lambda spec: spec.update(elasticity={"minGainSeconds": 7}),
    "priority": lambda spec: spec.update(priority=7),
    "suspend": lambda spec: spec.update(suspend=True),
    "activeDeadlineSeconds": lambda spec: spec.update(activeDeadlineSeconds=60),
    "startDeadlineSeconds": lambda spec: spec.update(startDeadlineSeconds=60),
    "ttlSecondsAfterFinished": lambda spec: spec.update(ttlSecondsAfterFinished=60),
    "failurePolicy": lambda spec: spec.update(
        failurePolicy={"limits": {"hang": 9}, "sameStepLimit": 7, "rules": [{"action": "Ignore", "exitCodes": [3]}]}
    ),
}


def test_what_is_fixed_is_refused_and_the_message_says_what_may_change(client: Client, made: Json):
    for field, change in FIXED.items():
        done = client.edit(made, change, check=False)
        assert done.returncode != 0 and f"spec.{field}: Forbidden" in done.stderr, (field, done)
        assert "cannot" in done.stderr and "delete the run and create it anew" in done.stderr, field


def test_what_is_live_is_taken_at_any_time(client: Client, made: Json):
    for field, change in LIVE.items():
        done = client.edit(made, change, check=False)
        assert done.returncode == 0, (field, done.stderr)


def test_what_shapes_pods_is_taken_while_suspended_only(client: Client, made: Json):
    def texts() -> Iterator[str]:
        for change in WHILE_NO_PODS.values():
            yield client.edit(made, change, check=False).stderr

    assert all(f"spec.{field}: Forbidden" in text for field, text in zip(WHILE_NO_PODS, texts(), strict=True))
    client("patch", "vtr/demo", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    client.status({"phase": "Suspending"})
    assert all("wait for phase Suspended" in text for text in texts())
    client.status({"phase": "Suspended"})
    assert list(texts()) == [""] * len(WHILE_NO_PODS)
    assert (
        "gpusPerNode cannot change" in client.edit(made, lambda s: s["pool"].update(gpusPerNode=1), check=False).stderr
    )


def test_scale_moves_the_upper_bound_and_is_told_its_limits(client: Client, made: Json):
    client("scale", "vtr/demo", "--replicas=4")
    assert client.read()["spec"]["nodes"] == {"min": 1, "max": 4}
    client.status({"nodes": {"current": 3, "ready": 3, "min": 1, "max": 4}})
    scale = json.loads(client("get", "vtr/demo", "--subresource=scale", "-o", "json").stdout)
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (4, 3)
    assert "lower nodes.max" in client.refusal(
        "scale", "vtr/demo", "--replicas=5"
    )  # 5 nodes of 2 GPUs, 8 micro-batches
    client("patch", "vtr/demo", "--type=merge", "-p", '{"spec":{"nodes":{"min":2}}}')
    text = client.refusal("scale", "vtr/demo", "--replicas=1")
    assert "spec.nodes.min" in text and "min must be at most max" in text and "suspend" in text
    assert "greater than or equal to 1" in client.refusal("scale", "vtr/demo", "--replicas=0")


def running_status() -> RunStatus:
    status = RunStatus(
        phase="Running",
        stage="256px-t2v",
        step=12345,
        stages=[StageStatus(name="256px-t2v", task="train", state="Running", config_hash="0", total_steps=85000)],
        nodes=NodesStatus(current=28, ready=28, min=12, max=28),
        throughput=ThroughputStatus(mfu_percent=41.2345),
        cost=CostStatus(currency="USD", total_micros=123_456_789_012),
    )
    last_step = datetime.now(UTC) - timedelta(minutes=12)
    return status.model_copy(update={"columns": columns_of(status).model_copy(update={"last_step": last_step})})


def test_get_shows_a_line_that_fits_a_terminal(client: Client, made: Json):
    client.status(running_status().to_wire())
    head, line = client("get", "vtr").stdout.splitlines()
    assert head.split() == ["NAME", "PHASE", "STAGE", "STEP", "NODES", "STEPPED", "MFU", "COST", "AGE"]
    assert line.split()[:8] == ["demo", "Running", "256px-t2v", "12345/85000", "28/28", "12m", "41%", "$123457"]
    assert max(len(head.rstrip()), len(line.rstrip())) <= 80
    wide = client("get", "videotrainingruns", "-o", "wide").stdout.splitlines()[0].split()
    assert wide[9:] == ["GENERATION", "FORECAST", "QUEUE"]
    assert "demo" in client("get", "training").stdout, "the category"


def objects(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Every mapping with fields, as `kubectl explain` names it."""
    if "properties" in schema:
        yield path, schema["properties"]
    for name, below in schema.get("properties", {}).items():
        yield from objects(below.get("items", below), f"{path}.{name}")


def test_explain_documents_every_field(kubectl: Run):
    schema = root_schema()["properties"]
    for start in ("spec", "status"):
        for path, fields in objects(schema[start], f"vtr.{start}"):
            lines = kubectl("explain", path).stdout.splitlines()
            top = lines.index("DESCRIPTION:")
            assert lines[top + 1].strip() and "<empty>" not in lines[top + 1], path
            for name in fields:
                place = next(n for n, line in enumerate(lines) if line.startswith(f"  {name}\t"))
                text = [line for line in lines[place + 1 : place + 4] if line.startswith("    ")]
                assert any("enum:" not in line and line.strip() for line in text), f"{path}.{name}"
                assert "<no description>" not in "".join(text), f"{path}.{name}"


def test_explain_tells_unit_and_default(kubectl: Run):
    text = " ".join(kubectl("explain", "vtr.spec.pool.shmGibibytes").stdout.split())
    assert "GiB" in text and "Default: 64." in text


def condition(kind: str, status: str, generation: int) -> Json:
    now = datetime.now(UTC)
    made = ConditionStatus(
        type=kind, status=status, reason="Test", observed_generation=generation, last_transition_time=now
    )
    return made.to_wire()


def test_wait_sees_a_condition(client: Client, made: Json):
    early = client("wait", "vtr/demo", "--for=condition=Complete", "--timeout=0", check=False)
    assert early.returncode != 0
    client.status(RunStatus(phase="Succeeded").to_wire() | {"conditions": [condition("Complete", "True", 1)]})
    assert "condition met" in client("wait", "vtr/demo", "--for=condition=Complete", "--timeout=60s").stdout
    assert "condition met" in client("wait", "vtr/demo", "--for=jsonpath={.status.phase}=Succeeded").stdout


def test_spec_and_status_are_written_apart(client: Client, made: Json):
    client("patch", "vtr/demo", "--type=merge", "-p", '{"spec":{"suspend":true},"status":{"phase":"Failed"}}')
    assert client.read()["metadata"]["generation"] == 2 and "status" not in client.read()
    client("patch", "vtr/demo", "--subresource=status", "--type=merge", "-p", '{"spec":{"suspend":false},"status":{}}')
    client.status({"phase": "Suspended"})
    seen = client.read()
    assert seen["spec"]["suspend"] is True and seen["status"]["phase"] == "Suspended"
    assert seen["metadata"]["generation"] == 2, "only the spec has generations"


def test_conditions_merge_by_type(client: Client, made: Json, namespace: str):
    """Two writers of conditions do not take each other's away."""
    for manager, kind in (("one", "Complete"), ("two", "Failed")):
        head = {"apiVersion": made["apiVersion"], "kind": made["kind"], "metadata": {"name": "demo"}}
        status = yaml.safe_dump(head | {"status": {"conditions": [condition(kind, "False", 1)]}})
        client("apply", "--server-side", "--subresource=status", "--field-manager", manager, "-f", "-", stdin=status)
    found = {item["type"]: item["observedGeneration"] for item in client.read()["status"]["conditions"]}
    assert found == {"Complete": 1, "Failed": 1}


def test_reserved_variables_and_crossed_volumes_are_refused(client: Client):
    pool = body()["spec"]["pool"]
    for more, text in (
        ({"env": {"RANK": "0"}}, "come from the roster"),
        ({"env": {"PET_NNODES": "2"}}, "set by the operator"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "credentialsSecret"),
        ({"env": {"1X": "x"}}, "do not start with a digit"),
        ({"cache": {"claimName": "c", "sizeGibibytes": 1}}, "or the other two"),
        ({"cache": {"storageClassName": "c"}}, "needs sizeGibibytes"),
    ):
        found = client.refusal("apply", "-f", "-", stdin=json.dumps(body(pool=pool | more)))
        assert text in found and "spec.pool." in found
    client.apply(body(pool=pool | {"env": {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}}))


def test_deleting_a_namespace_is_not_held_up_by_a_run(client: Client, made: Json, namespace: str):
    assert "finalizers" not in client.read()["metadata"]
    client("delete", "namespace", namespace, "--timeout=120s")
    assert "NotFound" in client.refusal("get", "namespace", namespace)
