"""`videotrain fetch`: what a run in a cluster made, with the keys of this account or those of the run."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from support.one_run import OneRun
from support.planner_builders import manifest, train_stage

from videotrain.commands import cluster_runs
from videotrain.commands import fetch as command
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.errors import UsageError


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> OneRun:
    run = manifest(stages=[train_stage("train", 200)])
    run["spec"]["storage"] = {"uri": "s3://videotrain/runs", "credentialsSecret": "s3"}
    run["metadata"] |= {"namespace": "lab", "uid": "u"}
    stage = {"name": "train", "task": "train", "state": "Succeeded", "configHash": "0" * 16}
    run["status"] = {"phase": "Succeeded", "stages": [stage]}

    client = OneRun(run)
    monkeypatch.setattr(cluster_runs, "connect", lambda *_: client)
    return client


def stored(name: str) -> None:
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="videotrain")
    client.put_object(Bucket="videotrain", Key=f"runs/{name}/train/weights/model.safetensors", Body=b"trained")


@pytest.mark.parametrize("own_keys", [True, False])
def test_weights_come_with_the_keys_that_there_are(
    client: OneRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_keys: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock_aws():
        stored("demo")
        if not own_keys:
            monkeypatch.setattr(boto3.Session, "get_credentials", lambda _: None)
        assert command.fetch("lab/demo", ClusterChoice(), tmp_path / "results", None) == 0
    assert (tmp_path / "results" / "transformer.safetensors").read_bytes() == b"trained"
    assert "Secret" not in client.asked if own_keys else "Secret" in client.asked
    assert "s3://videotrain/runs/demo/train/weights/model.safetensors" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_told_with_those_that_are(client: OneRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"other: 0 runs of that name; allowed: lab/demo"):
        command.fetch("other", ClusterChoice(), tmp_path, None)


def test_a_bucket_that_refuses_is_told(client: OneRun, tmp_path: Path) -> None:
    with mock_aws(), pytest.raises(UsageError, match=r"s3://videotrain/runs: was not read"):
        command.fetch("demo", ClusterChoice(), tmp_path, None)
