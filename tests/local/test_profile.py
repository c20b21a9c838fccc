"""A trace on demand, from the command through operator, roster, agents and workers to the object store."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys

import pytest

from videotrain.commands.get import DATABASE_FILE
from videotrain.embedded.database import read_objects
from videotrain.objectstore.s3_client import KEY_ID, SECRET_KEY, Credentials, s3_client
from videotrain.processes.podfiles import secret_value
from videotrain.report.workdir import S3Objects
from videotrain_api.vocabulary import KIND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def store_of(workdir):
    """The running object store of a working directory, and the status of its run."""
    (run,) = read_objects(workdir / DATABASE_FILE, KIND)
    storage = run["spec"]["storage"]
    secrets = {secret["metadata"]["name"]: secret for secret in read_objects(workdir / DATABASE_FILE, "Secret")}
    keys = secrets[storage["credentialsSecret"]]
    credentials = Credentials(*(secret_value(keys, name) for name in (KEY_ID, SECRET_KEY)))
    return S3Objects(s3_client(storage["endpointUrl"], credentials, "us-east-1")), run["status"]


def test_steps_of_two_ranks_on_two_nodes_are_traced_and_stored(start_training, manifest):
    local = start_training(manifest)
    before = local.until(lambda line: line.get("status", {}).get("phase") == "Running")["status"]["generations"]
    command = [sys.executable, "-m", "videotrain", "profile", "--workdir", str(local.workdir)]
    subprocess.run([*command, "--steps", "2", "--ranks", "0,1"], check=True)
    told = local.until(lambda line: line.get("message", "").startswith("Profile"))["message"]
    assert told.startswith("ProfileStored: trace 1: 2 stored in s3://"), told
    objects, status = store_of(local.workdir)
    traces = status["profile"]["traces"]
    assert [trace["rank"] for trace in traces] == [0, 1]
    for trace in traces:
        assert trace["lastStep"] == trace["firstStep"] + 1
        assert "/train/profiles/0001/rank-0000" in trace["uri"]
        events = json.loads(gzip.decompress(objects.get(trace["uri"])))["traceEvents"]
        names = {event.get("name", "") for event in events}
        assert any(name.startswith("aten::") for name in names)
        assert any("Optimizer.step" in name for name in names)
    shown = subprocess.run(
        [sys.executable, "-m", "videotrain", "get", "--workdir", str(local.workdir)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "trace 1: Stored" in shown
    assert "rank 1: s3://" in shown
    local.send(signal.SIGINT)
    assert local.end() == 130, local.told()
    generations = next(s for s in local.summary()["stages"] if s["name"] == "train")["generations"]
    assert len(generations) == len([g for g in before if g["stage"] == "train"]), "a trace does not change the world"
