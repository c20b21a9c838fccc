"""`videotrain fetch`: what a run in a cluster made, with the keys of this account or those of the run."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from support.planner_builders import manifest, train_stage

from videotrain.commands import cluster_runs
from videotrain.commands import fetch as command
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.errors import UsageError
from videotrain_operator.cluster.interface import NotFound

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


class Client:
    """Answers for the API server."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        self.asked: list[str] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def list(self, _kind: str, _namespace: str) -> list[dict[str, Any]]:
        return [self.run]

    async def get(self, kind: str, _namespace: str, name: str) -> dict[str, Any]:
        self.asked.append(kind)
        if kind != "Secret":
            raise NotFound(name)
        data = {key: base64.b64encode(value.encode()).decode() for key, value in KEYS.items()}
        return {"kind": "Secret", "metadata": {"name": name}, "data": data}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    run = manifest(stages=[train_stage("train", 200)])
    run["spec"]["storage"] = {"uri": "s3://videotrain/runs", "credentialsSecret": "s3"}
    run["metadata"] |= {"namespace": "lab", "uid": "u"}
    stage = {"name": "train", "task": "train", "state": "Succeeded", "configHash": "0" * 16}
    run["status"] = {"phase": "Succeeded", "stages": [stage]}

    client = Client(run)
    monkeypatch.setattr(cluster_runs, "connect", lambda *_: client)
    return client


def stored(name: str) -> None:
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="videotrain")
    client.put_object(Bucket="videotrain", Key=f"runs/{name}/train/weights/model.safetensors", Body=b"trained")


@pytest.mark.parametrize("own_keys", [True, False])
def test_weights_come_with_the_keys_that_there_are(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_keys: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock_aws():
        stored("demo")
        if not own_keys:
            monkeypatch.setattr(boto3.Session, "get_credentials", lambda _: None)
        assert command.fetch("lab/demo", ClusterChoice(), tmp_path / "results", None) == 0
    assert (tmp_path / "results" / "transformer.safetensors").read_bytes() == b"trained"
    assert "Secret" not in client.asked if own_keys else "Secret" in client.asked
    assert "s3://videotrain/runs/demo/train/weights/model.safetensors" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_told_with_those_that_are(client: Client, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"other: 0 runs of that name; allowed: lab/demo"):
        command.fetch("other", ClusterChoice(), tmp_path, None)


def test_a_bucket_that_refuses_is_told(client: Client, tmp_path: Path) -> None:
    with mock_aws(), pytest.raises(UsageError, match=r"s3://videotrain/runs: was not read"):
        command.fetch("demo", ClusterChoice(), tmp_path, None)
