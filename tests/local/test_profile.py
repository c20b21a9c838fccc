"""A trace on demand, from the command through operator, roster, agents and workers to the object store."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys

import pytest
from support.local_process import store_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
