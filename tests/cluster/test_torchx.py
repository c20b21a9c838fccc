"""`torchx run -s videotrain` by both of TorchX's wheels, as people type it, against a real API server and operators."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.chaos_rig import until
from support.controlplane import environment, program
from support.operator_bench import small_run

from videotrain_api.vocabulary import KIND

ROOT = Path(__file__).parents[2]
WHEELS = {"stable": ["./cli", "./cli/torchx_stable"], "nightly": ["./cli[torchx]"]}
BUILT_IN = {"local_docker", "local_cwd", "slurm", "kubernetes"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session", params=WHEELS)
def python(request, tmp_path_factory):
    """The interpreter of an environment that a user would make: the command and one of the wheels."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "./api", *WHEELS[request.param]]
    subprocess.run(install, cwd=ROOT, check=True)
    return folder / "bin/python"


@pytest.fixture
def torchx(python, control_plane):
    kept = {key: value for key, value in environment(control_plane).items() if key != "PYTHONPATH"}
    return program(python.parent / "torchx", kept)


def test_torchx_finds_us_and_keeps_what_it_had(python):
    code = """
import json
from torchx import specs
from torchx.schedulers import get_default_scheduler_name, get_scheduler_factories
from torchx.specs.finder import get_components
half = specs.resource(h="videotrain_h200")
print(json.dumps([list(get_scheduler_factories()), get_default_scheduler_name(), half.gpu,
                  {name: one.validation_errors for name, one in get_components().items()}]))
"""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    told = subprocess.run([python, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True, env=kept)
    schedulers, default, gpus, components = json.loads(told.stdout)
    assert BUILT_IN | {"videotrain"} <= set(schedulers)
    assert default == "local_docker", "what `torchx run` without -s does is not ours to change"
    assert gpus == 8
    assert {"dist.ddp", "vtr.run", "vtr.finetune", "vtr.sample"} <= set(components)
    assert [name for name, errors in components.items() if name.startswith("vtr.") and errors] == []


async def test_a_run_is_shown_started_watched_cancelled_and_not_started_twice(torchx, bench, tmp_path):
    await bench.start(replicas=1)
    file = tmp_path / "run.yaml"
    body = small_run("demo", bench.namespace)
    file.write_text(yaml.safe_dump(body))
    vtr_run = ("-s", "videotrain", "vtr.run", "--manifest", str(file))

    shown = torchx("run", "--dryrun", *vtr_run).stdout
    assert "Price, modelled: " in shown
    assert "NetworkPolicy" in shown
    assert bench.run("demo") == {}, "a dry run sends nothing"

    handle = re.search(r"videotrain://\S+", torchx("run", *vtr_run).stdout)[0]
    assert handle.endswith(f"/{bench.namespace}:demo")
    await bench.rosters(["demo"])
    status = torchx("status", handle)
    told = status.stdout + status.stderr
    assert "PENDING" in told or "RUNNING" in told, told
    assert re.search(r"(?s)worker.*\bRUNNING\b", told), told
    assert f"{bench.namespace}:demo" in torchx("list", "-s", "videotrain").stdout

    again = torchx("run", *vtr_run, check=False)
    assert again.returncode != 0
    assert "already exists" in again.stderr + again.stdout

    torchx("cancel", handle)
    await until(lambda: bench.status("demo").get("phase") == "Suspended", "it is suspended", bench.operators.tail)
    cancelled = torchx("status", handle)
    assert "CANCELLED" in cancelled.stdout + cancelled.stderr
    assert bench.run("demo")["spec"]["suspend"] is True, "its state is kept: it can go on"
    await bench.client.delete(KIND, bench.namespace, "demo")


def test_a_refused_manifest_is_told_before_anything_is_sent(torchx, tmp_path):
    body = small_run("demo", "default")
    body["spec"]["pool"]["gpusPerNode"] = 0
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(body))
    done = torchx("run", "-s", "videotrain", "vtr.run", "--manifest", str(file), check=False)
    assert done.returncode != 0
    assert "spec.pool.gpusPerNode" in done.stderr + done.stdout
