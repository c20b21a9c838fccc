"""Fixtures of a real control plane, for tests/cluster.

The control plane is a plain process tree and lives as long as the test session; clients belong to the event loop of
their test.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from support.audit import AuditedControlPlane
from support.plane_objects import create_namespace

from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.settings import Kwok, Settings
from videotrain.controlplane.tools import helm as helm_program
from videotrain.controlplane.tools import kubectl as kubectl_program
from videotrain_operator.kube.client import KubeClient, connect

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "manifests" / "crds"
Run = Callable[..., subprocess.CompletedProcess[str]]
OPERATOR = "operator-under-test"
"""A user whose requests are written down."""


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AuditedControlPlane]:
    """A running control plane with the CRDs of manifests/crds, one for the test session (and xdist worker).

    Stock settings with fake nodes. A test that needs others asks for a second one:
    `@pytest.mark.parametrize("control_plane", [Settings(...)], indirect=True, scope="session")`.
    """
    settings = getattr(request, "param", Settings(kwok=Kwok()))
    with AuditedControlPlane(tmp_path_factory.mktemp("control-plane"), settings, [OPERATOR]) as plane:
        install_crds(plane)
        yield plane


@pytest_asyncio.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[KubeClient]:
    """A client that may do everything."""
    async with connect(str(control_plane.kubeconfig())) as client:
        yield client


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane) -> Run:
    """Run kubectl as an administrator: `kubectl("get", "nodes")`. Fails the test unless `check=False` is given."""
    return program(kubectl_program(), environment(control_plane))


@pytest.fixture(scope="session")
def helm(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run helm as an administrator, with caches of its own."""
    home = tmp_path_factory.mktemp("helm")
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    return program(helm_program(), environment(control_plane) | folders)


@pytest.fixture
def namespace(control_plane: ControlPlane, kubectl: Run) -> Iterator[str]:
    """A namespace that pods can be created in; deleted after the test, without waiting for that."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    create_namespace(control_plane, name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def environment(plane: ControlPlane, user: str | None = None) -> dict[str, str]:
    """Environment of a program that talks to the control plane."""
    path = plane.kubeconfig() if user is None else plane.kubeconfig(user, ())
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return kept | {"KUBECONFIG": str(path), "KUBECACHEDIR": str(plane.directory / "kubectl-cache")}


def program(path: Path, env: Mapping[str, str]) -> Run:
    """A callable that runs a program and gives what it said."""

    def run(
        *arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(path), *arguments], input=stdin, capture_output=True, text=True, check=False, env=env, timeout=timeout
        )
        words = f"{path.name} {' '.join(arguments)}: exit code {done.returncode}"
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done

    return run


def install_crds(plane: ControlPlane) -> None:
    """Install the CRDs of the project and wait until they are served."""
    for path in sorted(CRDS.glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            plane.install(manifest)


def pod_manifest(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A pod of one container that asks for nothing."""
    container = {"name": "main", "image": "image", **spec.pop("container", {})}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}
