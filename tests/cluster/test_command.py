"""`videotrain get`, `describe`, `events`, `suspend`, `resume` and `delete` against a real API server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.controlplane import Run, environment, program
from support.planner_builders import manifest

from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.tools import kubectl as kubectl_program


@pytest.fixture
def command(tmp_path: Path, control_plane: ControlPlane) -> Run:
    """The command as a program on PATH, under the two names that it is installed by."""
    for name in ("videotrain", "kubectl-vtr"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -m videotrain "$@"\n')
        path.chmod(0o755)
    return program(tmp_path / "videotrain", environment(control_plane))


@pytest.fixture
def runs(kubectl: Run, namespace: str) -> tuple[str, str]:
    for name in ("first", "second"):
        body = manifest()
        body["metadata"] = {"name": name}
        kubectl("--namespace", namespace, "apply", "-f", "-", stdin=json.dumps(body))
    return "first", "second"


def test_runs_are_got_as_people_and_machines_want_them(command: Run, namespace: str, runs: tuple[str, str]) -> None:
    table = command("get", "--namespace", namespace).stdout
    assert "2 runs" in table and "first" in table and "second" in table
    assert command("get", "-n", namespace, "-o", "name").stdout.split() == [
        f"videotrainingrun.videotrain.dev/{name}" for name in runs
    ]
    one = yaml.safe_load(command("get", f"{namespace}/first", "-o", "yaml").stdout)
    assert (one["kind"], one["metadata"]["name"]) == ("VideoTrainingRun", "first")
    assert "managedFields" not in one["metadata"]
    listed = json.loads(command("get", "-n", namespace, "--json").stdout)
    assert [each["metadata"]["name"] for each in listed["items"]] == list(runs)
    assert "first" in command("get", "first", "-n", namespace).stdout


def test_a_run_that_is_not_there_is_told_with_those_that_are(
    command: Run, namespace: str, runs: tuple[str, str]
) -> None:
    done = command("get", "third", "-n", namespace, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"third: 0 runs of that name; allowed: {namespace}/first, {namespace}/second" in done.stderr


def test_a_run_is_suspended_resumed_and_deleted(
    command: Run, kubectl: Run, namespace: str, runs: tuple[str, str]
) -> None:
    def suspended() -> str:
        return kubectl("-n", namespace, "get", "vtr/first", "-o", "jsonpath={.spec.suspend}").stdout

    command("suspend", "first", "-n", namespace)
    assert suspended() == "true"
    command("resume", f"{namespace}/first")
    assert suspended() in ("", "false")
    done = command("delete", "first", "third", "-n", namespace, check=False)
    assert done.returncode == 2 and len(kubectl("-n", namespace, "get", "vtr", "-o", "name").stdout.split()) == 2
    assert command("delete", "first", "-n", namespace).stdout == f"run {namespace}/first is deleted\n"
    assert kubectl("-n", namespace, "get", "vtr", "-o", "name").stdout.split() == [
        "videotrainingrun.videotrain.dev/second"
    ]


def test_what_was_told_about_a_run_is_shown(command: Run, kubectl: Run, namespace: str, runs: tuple[str, str]) -> None:
    head = json.loads(kubectl("-n", namespace, "get", "vtr/first", "-o", "json").stdout)["metadata"]
    for number, uid in ((1, head["uid"]), (2, "another")):
        about = {"kind": "VideoTrainingRun", "name": "first", "namespace": namespace, "uid": uid}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"told-{number}", "namespace": namespace},
            "involvedObject": about,
            "type": "Warning",
            "reason": "Recovered",
            "message": f"message {number}",
            "lastTimestamp": head["creationTimestamp"],
        }
        kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(event))
    told = command("events", "first", "-n", namespace).stdout
    assert "Recovered" in told and "message 1" in told and "message 2" not in told
    described = command("describe", "first", "-n", namespace).stdout
    assert "first" in described and "message 1" in described


def test_who_may_not_list_all_namespaces_sees_that_of_the_context(
    control_plane: ControlPlane, kubectl: Run, namespace: str, runs: tuple[str, str], tmp_path: Path, command: Run
) -> None:
    kubectl(
        "-n", namespace, "create", "role", "reader", "--verb=get,list", "--resource=videotrainingruns.videotrain.dev"
    )
    kubectl("-n", namespace, "create", "rolebinding", "reader", "--role=reader", "--user=somebody")
    path = tmp_path / "somebody.yaml"
    shutil.copy(control_plane.kubeconfig("somebody", ()), path)
    kubectl("--kubeconfig", str(path), "config", "set-context", "--current", "--namespace", namespace)
    done = command("get", "--kubeconfig", str(path), "-o", "name")
    assert len(done.stdout.split()) == 2
    assert f"only namespace {namespace} is looked at" in done.stderr


def test_kubectl_has_it_as_a_plugin(
    control_plane: ControlPlane, namespace: str, runs: tuple[str, str], command: Run, tmp_path: Path
) -> None:
    env = environment(control_plane)
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    done = subprocess.run(
        [kubectl_program(), "vtr", "get", "-n", namespace, "-o", "name"],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert len(done.stdout.split()) == 2
