"""Runs of the real command in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from support.processes import processes_below

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"


class LocalProcess:
    """One `videotrain local` whose JSON lines are read as they come."""

    def __init__(self, manifest, workdir, *options):
        self.workdir = workdir
        command = [sys.executable, "-m", "videotrain", "local", str(manifest), "--workdir", str(workdir), "--json"]
        self.errors = (workdir.parent / f"{workdir.name}.stderr").open("a+")
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.lines = []

    def until(self, condition):
        """The first line that fits; fails with what was said if the process ends before."""
        for text in self.process.stdout:
            self.lines.append(json.loads(text))
            if condition(self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"ended with {self.process.wait()} before it happened:\n{self.told()}")

    def until_step(self, stage, step):
        """The status in which a stage has finished a step."""

        def reached(line):
            status = line.get("status", {})
            return status.get("stage") == stage and status.get("step", 0) >= step

        return self.until(reached)["status"]

    def end(self):
        """Wait for the end; gives the exit code."""
        self.lines += [json.loads(text) for text in self.process.stdout]
        return self.process.wait()

    def send(self, number):
        """Send a signal to the command itself."""
        os.kill(self.process.pid, number)

    def told(self):
        """Messages and errors, for a failing test."""
        self.errors.seek(0)
        messages = [line["message"] for line in self.lines if "message" in line]
        return "\n".join([*messages, self.errors.read()])

    def summary(self):
        """summary.json."""
        return json.loads((self.workdir / "summary.json").read_text())

    def processes(self):
        """Live processes that belong to the working directory, apart from the command itself."""
        return processes_below(self.workdir)


@pytest.fixture
def start(tmp_path):
    """Starts the command; everything that still runs at the end of the test is killed."""
    started = []

    def start_process(manifest, *options, name="w"):
        started.append(LocalProcess(manifest, tmp_path / name, *options))
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
def undisturbed(tmp_path_factory, manifest):
    """Summary of the run as it goes when nothing happens."""
    local = LocalProcess(manifest, tmp_path_factory.mktemp("undisturbed") / "w")
    assert local.end() == 0, local.told()
    assert local.processes() == []
    return local.summary()
