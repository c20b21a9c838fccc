"""Runs of the real command in processes of their own."""

import contextlib
import json
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import yaml
from support.local_process import LocalProcess

from videotrain.locks import awaited

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
def steps():
    """Of the stage `train`: enough to lose a node and get it back."""
    return 600


@pytest.fixture(scope="session")
def manifest(tmp_path_factory, tiny, steps):
    """Two nodes of one worker each."""
    data = json.loads(json.dumps(tiny))
    data["metadata"]["name"] = "local"
    data["spec"]["nodes"] = {"min": 1, "max": 2}
    data["spec"]["elasticity"] = {"waitForMaxSeconds": 60, "minGainSeconds": 0}
    data["spec"]["checkpoint"] = {"everySteps": 20, "keepLast": 3}
    data["spec"]["failurePolicy"] = {"hangSeconds": 20, "startSeconds": 180, "graceSeconds": 30}
    for stage in data["spec"]["stages"]:
        if stage["task"] in ("train", "autoencoder"):
            stage[stage["task"]]["parallel"] = {"microBatchesPerStep": 2}
    train = next(stage["train"] for stage in data["spec"]["stages"] if stage["name"] == "train")
    train["steps"] = steps
    path = tmp_path_factory.mktemp("manifest") / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Makes a folder by its name once for all processes of pytest-xdist; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder(name, make):
        place = shared / name
        (shared / f"{name}-lock").mkdir(exist_ok=True)
        with awaited(shared / f"{name}-lock"):
            if not place.is_dir():
                part = tmp_path_factory.mktemp(name)
                make(part)
                part.rename(place)
        return place

    return folder


@pytest.fixture(scope="session")
def in_turn(tmp_path_factory, worker_id):
    """Enters what one test at a time may do, of all processes of pytest-xdist, by its name."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    @contextlib.contextmanager
    def entered(name):
        (shared / f"{name}-turn").mkdir(exist_ok=True)
        with awaited(shared / f"{name}-turn"):
            yield

    return entered


@pytest.fixture(scope="session")
def undisturbed_workdir(made_once, manifest):
    """Working directory of the run as it goes when nothing happens; `held_workdir` is for commands that hold it."""

    def run(folder):
        local = LocalProcess(manifest, folder / "w")
        assert local.end() == 0, local.told()
        assert local.processes() == []

    return made_once("undisturbed", run) / "w"


@pytest.fixture
def held_workdir(undisturbed_workdir, in_turn):
    """The same, for commands that one test at a time may give."""
    with in_turn("undisturbed"):
        yield undisturbed_workdir


@pytest.fixture(scope="session")
def undisturbed(undisturbed_workdir):
    """Its summary."""
    return json.loads((undisturbed_workdir / "summary.json").read_text())


@pytest.fixture(scope="session")
def training_workdir(made_once, manifest):
    """Working directory of the run as it is when it was interrupted in its first steps of training."""

    def run(folder):
        local = LocalProcess(manifest, folder / "w")
        local.until_step("train", 1)
        local.send(signal.SIGINT)
        assert local.end() == 130, local.told()

    return made_once("training", run) / "w"


@pytest.fixture
def start_training(start, training_workdir, tmp_path, in_turn):
    """Starts the command where the run trains, in a working directory of its own, whose object store listens on the
    port that it had there: one test at a time."""

    def start_there(manifest, *options, name="w", entering=(), seen=None):
        sockets = shutil.ignore_patterns("*.sock")  # of its object store, which has ended
        shutil.copytree(training_workdir, seen or tmp_path / name, ignore=sockets, dirs_exist_ok=True)
        return start(manifest, *options, name=name, entering=entering)

    with in_turn("training"):
        yield start_there
