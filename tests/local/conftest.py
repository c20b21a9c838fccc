"""Runs of the real command in processes of their own."""

import json
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from support.local_process import LocalProcess

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


@pytest.fixture
def start(tmp_path):
    """Starts the command; everything that still runs at the end of the test is killed."""
    started = []

    def start_process(manifest, *options, name="w", entering=()):
        started.append(LocalProcess(manifest, tmp_path / name, *options, entering=entering))
        return started[-1]

    yield start_process
    for local in started:
        if local.process.poll() is None:
            local.send(signal.SIGKILL)
            local.process.wait()
        psutil.wait_procs(local.processes(), timeout=10)
        local.errors.close()
        local.process.stdout.close()


@pytest.fixture(scope="session")
def tiny():
    """The tiny example as data, for tests that change it."""
    return yaml.safe_load((EXAMPLES / "tiny.yaml").read_text())


@pytest.fixture(scope="session")
def manifest(tmp_path_factory, tiny):
    """Two nodes of one worker each, with steps enough to lose a node and get it back."""
    data = json.loads(json.dumps(tiny))
    data["metadata"]["name"] = "local"
    data["spec"]["nodes"] = {"min": 1, "max": 2}
    data["spec"]["elasticity"] = {"waitForMaxSeconds": 60, "minGainSeconds": 0}
    data["spec"]["checkpoint"] = {"everySteps": 20, "keepLast": 3}
    data["spec"]["failurePolicy"] = {"hangSeconds": 10, "startSeconds": 180, "graceSeconds": 30}
    for stage in data["spec"]["stages"]:
        if stage["task"] in ("train", "autoencoder"):
            stage[stage["task"]]["parallel"] = {"microBatchesPerStep": 2}
    train = next(stage["train"] for stage in data["spec"]["stages"] if stage["name"] == "train")
    train["steps"] = 900
    path = tmp_path_factory.mktemp("manifest") / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="session")
def undisturbed_workdir(tmp_path_factory, manifest):
    """Working directory of the run as it goes when nothing happens."""
    local = LocalProcess(manifest, tmp_path_factory.mktemp("undisturbed") / "w")
    assert local.end() == 0, local.told()
    assert local.processes() == []
    return local.workdir


@pytest.fixture(scope="session")
def undisturbed(undisturbed_workdir):
    """Its summary."""
    return json.loads((undisturbed_workdir / "summary.json").read_text())
