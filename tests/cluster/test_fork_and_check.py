"""`videotrain fork` and `videotrain check --cluster` against a real API server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from support.chart import Json
from support.controlplane import Run, environment, program
from support.planner_builders import manifest, train_stage
from support.stored_checkpoint import store_checkpoint

from videotrain.controlplane.plane import ControlPlane

pytestmark = pytest.mark.timeout(900)
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """URL of an object store."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def command(tmp_path: Path, control_plane: ControlPlane) -> Run:
    path = tmp_path / "videotrain"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m videotrain "$@"\n')
    path.chmod(0o755)
    return program(path, environment(control_plane) | KEYS)


@pytest.fixture
def first(kubectl: Run, namespace: str) -> str:
    """A run whose first stage is complete and whose second one has begun."""
    body = manifest(
        stages=[train_stage("small", 100), train_stage("large", 200)], storage={"uri": "s3://videotrain/runs"}
    )
    body["metadata"] = {"name": "first"}
    kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(body))
    row: Json = {"task": "train", "configHash": "0" * 16}
    stages = [row | {"name": "small", "state": "Succeeded"}, row | {"name": "large", "state": "Running"}]
    status = {"status": {"phase": "Running", "stages": stages}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    kubectl("-n", namespace, "patch", "vtr/first", *patch)
    return f"{namespace}/first"


def runs(kubectl: Run, namespace: str) -> list[str]:
    return [name.rpartition("/")[2] for name in kubectl("-n", namespace, "get", "vtr", "-o", "name").stdout.split()]


def test_a_run_is_forked_from_a_stage_with_other_settings(
    command: Run, kubectl: Run, namespace: str, first: str
) -> None:
    more = ("--from", "large", "--set", "stages[large].train.steps=300")
    shown = yaml.safe_load(command("fork", first, *more, "--dry-run").stdout)
    assert runs(kubectl, namespace) == ["first"]
    assert "run" in command("fork", first, *more).stdout
    made = json.loads(kubectl("-n", namespace, "get", "vtr/first-2", "-o", "json", "--show-managed-fields").stdout)
    assert made["spec"]["stages"][0]["name"] == shown["spec"]["stages"][0]["name"] == "large"
    assert len(made["spec"]["stages"]) == 1 and made["spec"]["stages"][0]["train"]["steps"] == 300
    assert made["metadata"]["managedFields"][0]["manager"] == "videotrain-fork"
    assert not made.get("status")
    command("fork", first, *more)
    assert runs(kubectl, namespace) == ["first", "first-2", "first-3"]


def test_a_fork_that_the_api_server_refuses_leaves_nothing_behind(
    command: Run, kubectl: Run, namespace: str, first: str
) -> None:
    for options, told in (
        (("--from", "large", "--name", "Not_A_Name"), "metadata.name"),
        (("--from", "middle"), "allowed: small, large"),
        (("--from", "large", "--name", "first"), "--name first"),
    ):
        done = command("fork", first, *options, check=False)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    quota["spec"] = {"hard": {"count/videotrainingruns.videotrain.dev": "1"}}  # type: ignore[assignment]
    counted = ("wait", "resourcequota/few", "--for=jsonpath={.status.used}", "--timeout=5s")
    # Its controller looks for new kinds every half minute, and at a quota that it did not understand after five.
    known = False
    while not known:
        kubectl("-n", namespace, "replace", "--force", "-f", "-", stdin=json.dumps(quota))
        known = kubectl("-n", namespace, *counted, check=False).returncode == 0
    done = command("fork", first, "--from", "large", check=False)
    assert done.returncode == 2 and "exceeded quota: few" in done.stderr
    assert runs(kubectl, namespace) == ["first"]


def test_a_fork_goes_on_from_the_checkpoint_of_its_stage(
    command: Run, kubectl: Run, namespace: str, first: str, store: str
) -> None:
    client = boto3.client("s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id="test",
                          aws_secret_access_key="test")  # fmt: skip
    store_checkpoint(client, "runs/first/large", run=first, stage="large", step=40)
    command("fork", first, "--from", "large", "--optimizer", "--endpoint-url", store)
    found = {item["Key"] for item in client.list_objects_v2(Bucket="videotrain", Prefix="runs/first-2/")["Contents"]}
    assert "runs/first-2/large/checkpoints/step-00000040/commit.json" in found
    assert runs(kubectl, namespace) == ["first", "first-2"]


def test_a_manifest_is_checked_by_the_api_server(
    command: Run, kubectl: Run, namespace: str, first: str, store: str, tmp_path: Path
) -> None:
    body = manifest(storage={"uri": "s3://videotrain/runs", "endpointUrl": store, "credentialsSecret": "keys"})
    body["metadata"] = {"name": "new"}

    def found(document: Json, *options: str) -> tuple[int, dict[str, Json]]:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(document))
        done = command("check", str(path), "--cluster", "-n", namespace, "--json", *options, check=False)
        assert done.stdout, done.stderr
        findings = json.loads(done.stdout)["findings"]
        return done.returncode, {f"{each['check']} {each['path']}": each for each in findings}

    code, told = found(body)
    assert code == 2 and told["admission spec"]["verdict"] == "ok"
    missing = next(each for key, each in told.items() if "credentialsSecret" in key)
    assert missing["verdict"] == "wrong" and "keys" in missing["message"] + str(missing["value"])
    kubectl(
        "-n", namespace, "create", "secret", "generic", "keys", *(f"--from-literal={k}={v}" for k, v in KEYS.items())
    )
    _, told = found(body)
    assert next(each for key, each in told.items() if "credentialsSecret" in key)["verdict"] == "ok"
    body["metadata"]["name"] = "first"
    _, told = found(body)
    assert "there is a run of this name" in told["admission metadata.name"]["message"]
    assert runs(kubectl, namespace) == ["first"], "nothing is made"
