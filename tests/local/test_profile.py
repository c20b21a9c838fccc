"""A trace on demand, from the command through operator, roster, agents and workers to the object store."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_steps_of_two_ranks_on_two_nodes_are_traced_and_stored(start, manifest):
    local = start(manifest)
    local.until_step("train", 5)
    command = [sys.executable, "-m", "videotrain", "profile", "--workdir", str(local.workdir)]
    subprocess.run([*command, "--steps", "2", "--ranks", "0,1"], check=True)
    told = local.until(lambda line: line.get("message", "").startswith("Profile"))["message"]
    assert told.startswith("ProfileStored: trace 1: 2 stored in s3://"), told
    traces = sorted(local.workdir.rglob("profiles/0001/rank-*.json.gz"))
    assert [path.name.split(".")[0] for path in traces] == ["rank-00000", "rank-00001"]
    for path in traces:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
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
    assert len(generations) == 1, "a trace does not change the world"
