"""Who may use a working directory."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from videotrain.commands.change import suspend_local
from videotrain.errors import UsageError
from videotrain.local import workdir_lock
from videotrain.local.workdir_lock import check_same_run, check_space, locked
from videotrain.locks import DirectoryError
from videotrain_api.resource.trainrun import VideoTrainingRun

DEMO = Path(__file__).parents[4] / "manifests" / "examples" / "demo.yaml"


@pytest.fixture
def manifest():
    return yaml.safe_load(DEMO.read_text())


def test_a_second_process_is_told_who_holds_the_directory(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from videotrain.local.workdir_lock import locked\n"
        "with locked(Path(sys.argv[1])): pass"
    )
    with locked(tmp_path / "new" / "w"):
        command = [sys.executable, "-c", code, str(tmp_path / "new" / "w")]
        second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert "DirectoryError" in second.stderr and "a run is going on here (process " in second.stderr
    assert subprocess.run(command).returncode == 0


def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryError, match="cannot be written"), locked(tmp_path / "file" / "w"):
        pass


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock.shutil, "disk_usage", lambda _: type("U", (), {"free": 5 * 2**20}))
    with pytest.raises(DirectoryError, match="disk full: 5 MiB are free and 512 MiB are needed"):
        check_space(tmp_path)


def test_the_same_run_with_changed_live_fields_goes_on(tmp_path, manifest):
    changed = copy.deepcopy(manifest)
    changed["spec"]["nodes"] = {"min": 1, "max": 1}
    changed["spec"]["budget"]["maxCost"] = "9.00"
    changed["spec"]["suspend"] = True
    changed["spec"]["failurePolicy"]["limits"] = {"hang": 9}
    held = manifest | {"status": {"phase": "Running"}}
    held["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    check_same_run(tmp_path, held, VideoTrainingRun.from_wire(changed))


def test_a_suspended_run_takes_another_price_but_no_other_number_of_gpus(tmp_path, manifest):
    changed = copy.deepcopy(manifest)
    changed["spec"]["pool"]["pricePerGpuHour"] = "3.00"
    resting = copy.deepcopy(manifest) | {"status": {"phase": "Suspended"}}
    check_same_run(tmp_path, resting, VideoTrainingRun.from_wire(changed))
    with pytest.raises(DirectoryError, match=r"spec\.pool\.pricePerGpuHour: '2\.00' in the directory, '3\.00' now"):
        check_same_run(tmp_path, manifest, VideoTrainingRun.from_wire(changed))
    changed["spec"]["pool"]["gpusPerNode"] = 2
    with pytest.raises(DirectoryError, match=r"spec\.pool\.gpusPerNode"):
        check_same_run(tmp_path, resting, VideoTrainingRun.from_wire(changed))


def test_a_suspended_run_takes_other_stages_unless_they_are_complete_or_would_change_the_order(tmp_path, manifest):
    states = ["Succeeded", "Succeeded", "Succeeded", "Running", "Pending", "Pending", "Pending"]
    stages = [
        {"name": stage["name"], "task": stage["task"], "state": state, "configHash": "0" * 16, "savedStep": 40}
        for stage, state in zip(manifest["spec"]["stages"], states, strict=True)
    ]
    held = copy.deepcopy(manifest) | {"status": {"phase": "Suspended", "stages": stages}}

    def check(number, **task):
        changed = copy.deepcopy(manifest)
        stage = changed["spec"]["stages"][number]
        stage[stage["task"]] |= task
        check_same_run(tmp_path, held, VideoTrainingRun.from_wire(changed))

    check(3, steps=900)
    check(4, textDropout=0.5)
    check(5, samplingSteps=3)
    for number, task, told in (
        (3, {"steps": 40}, r"spec\.stages\[3\]\.train\.steps: 40: 40 are done"),
        (3, {"textDropout": 0.5}, r"spec\.stages\[3\]\.train\.textDropout.*order of samples"),
        (1, {"steps": 150}, r"spec\.stages\[1\]\.autoencoder: '\(changed\)': stage 'autoencoder' is complete"),
    ):
        with pytest.raises(DirectoryError, match=told):
            check(number, **task)


def test_another_spec_is_refused_with_every_difference(tmp_path, manifest):
    changed = copy.deepcopy(manifest)
    changed["spec"]["seed"] = 7
    steps = changed["spec"]["stages"][1]["autoencoder"]["steps"]
    changed["spec"]["stages"][1]["autoencoder"]["steps"] = steps + 1
    with pytest.raises(DirectoryError) as refused:
        check_same_run(tmp_path, manifest, VideoTrainingRun.from_wire(changed))
    assert "spec.seed: 42 in the directory, 7 now" in str(refused.value)
    assert f"spec.stages[1].autoencoder.steps: {steps} in the directory, {steps + 1} now" in str(refused.value)


def test_another_name_is_refused(tmp_path, manifest):
    changed = copy.deepcopy(manifest)
    changed["metadata"]["name"] = "other"
    with pytest.raises(DirectoryError, match="holds the run 'demo', not 'other'"):
        check_same_run(tmp_path, manifest, VideoTrainingRun.from_wire(changed))


SERVE = """
import sys; from pathlib import Path
from videotrain.local.workdir_lock import locked
with locked(Path(sys.argv[1]), *sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("work", [(), ("its object store is served",)])
def test_only_a_run_that_goes_on_is_suspended(tmp_path, work):
    command = [sys.executable, "-c", SERVE, str(tmp_path), *work]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert workdir_lock.runner(tmp_path) == (None if work else other.pid)
        if work:
            with pytest.raises(UsageError, match=r"no run goes on there \(its object store is served\)"):
                suspend_local(tmp_path)
            assert other.poll() is None
            with pytest.raises(DirectoryError, match="its object store is served here"), locked(tmp_path):
                pass
        else:
            assert suspend_local(tmp_path) == 0
    assert (workdir_lock.runner(tmp_path), other.returncode) == (None, 0 if work else -15)
