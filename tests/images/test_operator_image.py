"""The operator's image does what its Deployment asks for, and holds nothing that it does not need."""

from __future__ import annotations

import json

import pytest
from support.images import ROOT, Image, buildah

pytestmark = pytest.mark.timeout(1800)
LARGEST = 200_000_000
"""Bytes above the base."""


def test_the_operator_starts(operator_image: Image) -> None:
    done = operator_image.run("videotrain-operator", "run", "--help")
    assert done.returncode == 0, done.stderr
    assert "--lease-seconds" in done.stdout


def test_all_of_it_can_be_imported(operator_image: Image) -> None:
    done = operator_image.run("python", "-c", "import videotrain_operator.manager.app")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["torch", "numpy", "deepspeed", "videotrain_trainer", "videotrain", "pip"])
def test_it_holds_nothing_for_training(operator_image: Image, package: str) -> None:
    done = operator_image.run("python", "-c", f"import {package}")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_it_runs_as_nobody(operator_image: Image) -> None:
    assert operator_image.config["User"] == "65532:65532"
    assert operator_image.run("python", "-c", "import os; print(os.getuid(), os.getgid())").stdout.split() == [
        "65532",
        "65532",
    ]


def test_it_cannot_change_itself(operator_image: Image) -> None:
    done = operator_image.run("sh", "-c", "find /opt/videotrain -writable -not -type l | head -3")
    assert not done.stdout, done.stdout


def test_versions_are_the_locked_ones(operator_image: Image) -> None:
    script = "import importlib.metadata as m; [print(d.name, d.version, sep='==') for d in m.distributions()]"
    installed = set(operator_image.run("python", "-c", script).stdout.lower().replace("_", "-").split())
    locked = {line for line in (ROOT / "lock.txt").read_text().lower().split() if "==" in line}
    ours = {item for item in installed if item.startswith("videotrain-")}
    assert {item.partition("==")[0] for item in ours} == {"videotrain-api", "videotrain-operator"}
    assert installed - ours <= locked


def test_it_lists_its_parts(operator_image: Image) -> None:
    listed = json.loads(operator_image.run("cat", "/opt/videotrain/sbom.cdx.json").stdout)
    assert listed["bomFormat"] == "CycloneDX"
    found = {f"{part['name'].lower().replace('_', '-')}=={part['version']}" for part in listed["components"]}
    locked = {line.split()[0] for line in (ROOT / "images/operator.lock").read_text().splitlines() if "==" in line}
    assert {part for part in found if not part.startswith("videotrain-")} == locked


def test_a_release_without_the_digest_of_its_base_is_refused(base: str) -> None:
    command = ["build", "--isolation", "chroot", "--layers=false", "--pull-never", "--build-arg", "RELEASE=1"]
    command += ["--file", "images/operator.Dockerfile", "--ignorefile", "images/operator.Dockerfile.dockerignore", "."]
    done = buildah(*command, check=False)
    assert done.returncode != 0
    assert "a release names its base by digest" in done.stdout + done.stderr


def test_it_is_small(operator_image: Image, base_bytes: int) -> None:
    assert operator_image.size - base_bytes < LARGEST


def test_it_starts_the_operator_by_itself(operator_image: Image) -> None:
    assert operator_image.config["Cmd"] == ["videotrain-operator", "run"]
