"""A worker process below the real torchrun command, and on its own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.agent_pods import INJECTED, stage_config

from videotrain_api import vocabulary as names
from videotrain_api.records import WorkerExit
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.worker.main import LEFT_BEFORE_START, WorkerEnvironment, choose_device
from videotrain_trainer.worker.pod import load_config


@pytest.fixture
def pod(tmp_path):
    """Environment of a pod with a configuration of three steps."""
    return os.environ | {
        names.ENV_POD_ROOT: str(tmp_path),
        names.ENV_POD_NAME: "w0",
        names.ENV_POD_UID: "uid",
        names.ENV_POD_IP: "127.0.0.1",
        names.ENV_RUN: "tiny",
        names.ENV_NAMESPACE: "default",
        names.ENV_GENERATION: "1",
        names.ENV_RESTORE: "1",
        names.ENV_SAVED_STEP: "0",
        names.ENV_CONFIG_FILE: str(tmp_path / "walk.json"),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(INJECTED),
    }


def exit_record(folder, local_rank):
    return WorkerExit.model_validate_json((folder / names.DIR_RUN / f"exit-1-{local_rank}.json").read_text())


def test_a_worker_runs_below_the_torchrun_command(tmp_path, pod):
    (tmp_path / "walk.json").write_text(stage_config(steps=3).canonical_json())
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "videotrain_trainer.cli", "run"]
    done = subprocess.run([sys.executable, "-m", *command], env=pod, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for local_rank in (0, 1):
        record = exit_record(tmp_path, local_rank)
        assert (record.outcome, record.code, record.step) == ("completed", ExitCode.OK, 3)
        assert record.config_hash == stage_config(steps=3).hash()
    assert len((tmp_path / names.DIR_RUN / "records-1-0.jsonl").read_text().splitlines()) == 4


def alone(pod, world_size):
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": str(world_size)}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-m", "videotrain_trainer.cli", "run"]
    return subprocess.Popen(command, env=pod | ranks | place, stderr=subprocess.PIPE, text=True)


def test_a_missing_configuration_is_told_by_code_and_record(tmp_path, pod):
    worker = alone(pod, world_size=1)
    _, log = worker.communicate()
    assert worker.returncode == ExitCode.CONFIG
    assert "walk.json does not exist" in exit_record(tmp_path, 0).message
    assert exit_record(tmp_path, 0).config_hash == ""
    assert "walk.json does not exist" in log


def test_a_worker_whose_peers_never_came_leaves_at_once_when_asked(tmp_path, pod):
    (tmp_path / "walk.json").write_text(stage_config().canonical_json())
    worker = alone(pod, world_size=2)
    announced = tmp_path / names.DIR_RUN / "worker-1-0.pid"
    deadline = time.monotonic() + 60
    while not announced.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    _, log = worker.communicate(timeout=30)
    assert worker.returncode == LEFT_BEFORE_START, log
    record = exit_record(tmp_path, 0)
    assert (record.outcome, record.code) == ("drained", ExitCode.OK)


HELPER = """
import multiprocessing, os, signal, time
from videotrain_trainer.worker.drain import SignalDrain

drain = SignalDrain(leave_early=lambda: print("left early", flush=True))
helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
helper.start()
helper.terminate()
helper.join()
assert helper.exitcode == -signal.SIGTERM, helper.exitcode
assert not drain.requested()
os.kill(os.getpid(), signal.SIGTERM)
while not drain.requested():
    time.sleep(0.01)
"""


def test_the_end_of_a_helper_process_is_no_request_to_drain():
    done = subprocess.run([sys.executable, "-c", HELPER], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "left early\n"


def test_a_configuration_that_does_not_fit_names_the_field(tmp_path):
    (tmp_path / "walk.json").write_text('{"run": 7}')
    with pytest.raises(ConfigError, match=r"walk\.json.*\n.*run"):
        load_config(tmp_path / "walk.json")


def test_a_configuration_has_the_hash_of_what_was_frozen(tmp_path):
    data = stage_config().to_wire()
    del data["logEverySteps"]  # as of a version that did not know it
    frozen = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (tmp_path / "walk.json").write_text(frozen)
    assert load_config(tmp_path / "walk.json").hash() == hashlib.sha256(frozen.encode()).hexdigest()[:16]


def environment(pod, visible, processes, local_rank=0):
    ranks = {"RANK": str(local_rank), "LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(processes)}
    visible = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    rest = {name: value for name, value in pod.items() if name != "CUDA_VISIBLE_DEVICES"}
    return WorkerEnvironment.read(rest | ranks | {"WORLD_SIZE": str(processes)} | visible)


@pytest.mark.parametrize(("found", "visible"), [(8, None), (8, "0,1,2,3,4,5,6,7"), (2, "6,7")])
def test_a_worker_process_takes_the_device_of_its_local_rank(pod, found, visible):
    assert choose_device(found, environment(pod, visible, 2, local_rank=1)) == torch.device("cuda", 1)


@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_without_devices_a_worker_process_uses_the_cpu(pod, visible):
    assert choose_device(0, environment(pod, visible, 2)) == torch.device("cpu")


@pytest.mark.parametrize(("found", "visible"), [(1, None), (1, "0"), (0, "0,1")])
def test_worker_processes_never_share_a_device(pod, found, visible):
    wanted = rf"finds {found} CUDA devices in the pod.*2 worker processes need one each.*spec.pool.gpusPerNode"
    with pytest.raises(ConfigError, match=wanted):
        choose_device(found, environment(pod, visible, 2))


def test_a_pod_that_was_given_devices_does_not_quietly_use_the_cpu(tmp_path, pod):
    (tmp_path / "walk.json").write_text(stage_config(steps=3).canonical_json())
    missing = "GPU-00000000-0000-0000-0000-000000000000"  # no machine has it, so PyTorch finds none
    worker = alone(pod | {"CUDA_VISIBLE_DEVICES": missing}, world_size=1)
    worker.communicate()
    record = exit_record(tmp_path, 0)
    assert (worker.returncode, record.code) == (ExitCode.CONFIG, ExitCode.CONFIG)
    assert "finds 0 CUDA devices" in record.message and missing in record.message
