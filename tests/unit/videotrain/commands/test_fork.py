"""`videotrain fork`: names, what a cluster refuses, and a fork that is given again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws
from support.one_run import OneRun
from support.planner_builders import manifest, train_stage
from support.stored_checkpoint import store_checkpoint

from videotrain.commands import cluster_runs
from videotrain.commands import fork as command
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.embedded.database import DATABASE_FILE
from videotrain.errors import UsageError
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.kube.client import ApiError

WITHIN = command.Fork(stage="train", name=None, changes=(), optimizer=True)
AT = "2026-01-01T00:00:00Z"


class Forkable(OneRun):
    """A cluster that keeps what is created, or refuses it."""

    refusal: Exception | None = None

    def __init__(self, run: dict[str, Any]) -> None:
        super().__init__(run)
        self.runs = [run]

    async def list(self, _kind: str, _namespace: str) -> list[dict[str, Any]]:
        return list(self.runs)

    async def raw(self, method: str, _path: str, _body: Any, query: dict[str, str]) -> dict[str, Any]:
        assert (method, query["dryRun"]) == ("POST", "All")
        if self.refusal is not None:
            raise self.refusal
        return {}

    async def create(self, document: dict[str, Any], _manager: str, namespace: str) -> dict[str, Any]:
        self.runs.append({**document, "metadata": document["metadata"] | {"namespace": namespace}})
        return document


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Forkable:
    run = manifest(stages=[train_stage("train", 200)])
    run["spec"]["storage"] = {"uri": "s3://videotrain/runs"}
    run["metadata"] |= {"namespace": "lab", "uid": "u"}
    run["status"] = {"phase": "Running", "stages": [{"name": "train", "task": "train", "state": "Running"}]}
    client = Forkable(run)
    monkeypatch.setattr(cluster_runs, "connect", lambda *_: client)
    return client


def stored(step: int = 40) -> Any:
    client = boto3.client("s3", region_name="us-east-1")
    store_checkpoint(client, "runs/demo/train", run="lab/demo", stage="train", step=step)
    return client


def keys(client: Any) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket="videotrain")["Contents"]]


def fork(changed: command.Fork = WITHIN) -> int:
    return command.fork_in_cluster("demo", ClusterChoice(), changed, dry_run=False, endpoint_url=None)


def test_forks_of_a_run_have_names_of_their_own_and_leave_each_others_checkpoints_alone(cluster: Forkable) -> None:
    with mock_aws():
        client = stored()
        client.put_object(Bucket="videotrain", Key="runs/demo-3/train/fence/g000001.json", Body=b"of a deleted run")
        assert fork() == 0
        latest = "runs/demo-2/train/checkpoints/latest.json"
        client.put_object(Bucket="videotrain", Key=latest, Body=b"of the first fork")
        assert fork() == 0
        assert client.get_object(Bucket="videotrain", Key=latest)["Body"].read() == b"of the first fork"
        assert "runs/demo-4/train/checkpoints/latest.json" in keys(client)
    assert [run["metadata"]["name"] for run in cluster.runs] == ["demo", "demo-2", "demo-4"]


def test_a_name_that_is_taken_is_refused_before_anything_is_copied(cluster: Forkable) -> None:
    named = command.Fork(stage="train", name="old", changes=(), optimizer=True)
    with mock_aws():
        client = stored()
        client.put_object(Bucket="videotrain", Key="runs/old/train/x", Body=b"")
        before = keys(client)
        with pytest.raises(UsageError, match="--name old: there is a run of this name, or something of one"):
            fork(named)
        assert keys(client) == before
    assert len(cluster.runs) == 1


@pytest.mark.parametrize(
    "refusal",
    [Conflict("post: 'demo-2' already exists"), ApiError(422, "Invalid", "post: spec.budget: what the webhook said")],
)
def test_a_creation_that_the_cluster_refuses_copies_nothing_and_tells_why(
    cluster: Forkable, refusal: Exception
) -> None:
    cluster.refusal = refusal
    with mock_aws():
        client = stored()
        before = keys(client)
        with pytest.raises(UsageError, match=f"the cluster refuses: {refusal}"):
            fork()
        assert keys(client) == before


@pytest.mark.usefixtures("cluster")
def test_a_store_that_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock_aws():  # without the bucket
        with pytest.raises(UsageError, match=r"--optimizer: the checkpoint was not copied: .*NoSuchBucket"):
            fork()
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="videotrain")
        with pytest.raises(UsageError, match=r"--optimizer: .* gives no checkpoint"):
            fork()

    def unreachable(*_: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://store")

    monkeypatch.setattr(command, "s3_client", unreachable)
    with mock_aws(), pytest.raises(UsageError, match="Could not connect to the endpoint URL"):
        fork()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Forkable) -> command.LocalFork:
    """A fork that was made in W2, of a run in W."""
    monkeypatch.setattr(command, "_held_run", lambda _: (cluster.run, True))
    monkeypatch.setattr(command, "run_local", lambda options: int(options.manifest.parent != options.workdir))
    document, _, _ = command.plan_fork(
        cluster.run, command.Fork(stage="train", name=None, changes=(), optimizer=False), lambda _: False
    )
    (tmp_path / "W2").mkdir()
    (tmp_path / "W2" / DATABASE_FILE).touch()
    (tmp_path / "W2" / "manifest.yaml").write_text(yaml.safe_dump(document))
    return command.LocalFork(workdir=tmp_path / "W", to=tmp_path / "W2", device="cpu", json=False)


def test_a_fork_that_is_given_again_goes_on_and_another_one_is_refused(here: command.LocalFork) -> None:
    assert command.fork_here(here, command.Fork(stage="train", name=None, changes=(), optimizer=False)) == 0
    longer = command.Fork(stage="train", name=None, changes=("stages[train].train.steps=300",), optimizer=False)
    with pytest.raises(UsageError, match="holds a fork with another spec; give the same --from, --name and --set"):
        command.fork_here(here, longer)
    with pytest.raises(UsageError, match="holds a fork with another metadata"):
        command.fork_here(here, command.Fork(stage="train", name="other", changes=(), optimizer=False))


def test_a_fork_into_the_folder_of_the_run_itself_is_refused(tmp_path: Path) -> None:
    options = command.LocalFork(workdir=tmp_path, to=tmp_path / "x" / "..", device="cpu", json=False)
    with pytest.raises(UsageError, match="is the working directory of the run itself"):
        command.fork_here(options, WITHIN)
