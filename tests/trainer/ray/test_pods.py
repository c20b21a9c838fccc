"""A whole run whose pods are a Ray cluster while it curates and encodes, and which loses a pod and gets another."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from support.local_process import LocalProcess
from support.storage_runs import EXAMPLE

from videotrain_trainer.data.video import write_mp4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
VIDEOS = 40


@pytest.fixture
def raw(tmp_path, texture) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(VIDEOS):
        scene = texture(number, height=48, width=64)
        write_mp4((scene(frame) for frame in range(30)), folder / f"c{number:03d}.mp4", Fraction(24), crf=28)
    return folder


def manifest(path: Path, engine: str) -> Path:
    """Curate and encode with two pods, and train a step."""
    data = copy.deepcopy(yaml.safe_load(EXAMPLE.read_text()))
    data["spec"]["nodes"] = {"min": 2, "max": 2}
    data["spec"]["failurePolicy"] = {"hangSeconds": 120, "startSeconds": 300, "graceSeconds": 60}
    stages = {stage["name"]: stage for stage in data["spec"]["stages"]}
    stages["curate"]["curate"] = {"engine": engine, "minSeconds": 0.5, "minMotion": 0.0, "minBlur": 0.0}
    stages["encode"]["encode"] = {"engine": engine, "shardBytes": 65536}
    for name in ("autoencoder", "train"):
        stages[name][name] |= {"steps": 2, "parallel": {"microBatchesPerStep": 2}}
    data["spec"]["stages"] = [stages[name] for name in ("curate", "autoencoder", "encode", "train")]
    path.write_text(yaml.safe_dump(data))
    return path


def summary_of(local: LocalProcess) -> dict:
    """Of a run that succeeds, and of which nothing is left running."""
    try:
        assert local.end() == 0, local.told()
        assert local.processes() == []
    finally:
        local.errors.close()
        local.stdout.close()
    return local.summary()


def test_a_pod_is_lost_and_another_joins_and_the_sets_are_those_of_the_local_engine(tmp_path, raw):
    options = ["--device", "cpu", "--data", str(raw)]
    local = LocalProcess(manifest(tmp_path / "local.yaml", "local"), tmp_path / "local", *options)
    expected = summary_of(local)
    faults = ["--chaos", f"kill-node@stage=curate,step={VIDEOS // 4},restore=1"]
    ray = LocalProcess(manifest(tmp_path / "ray.yaml", "ray"), tmp_path / "ray", *options, *faults)
    found = summary_of(ray)
    curate = next(stage for stage in found["stages"] if stage["name"] == "curate")
    assert [generation["world_size"] for generation in curate["generations"]] == [2, 2]
    # The order of training names every sample by what it was made of.
    assert found["samples"] == expected["samples"]
    assert found["drops"] == expected["drops"]
