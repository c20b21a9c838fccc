"""Controllers of other projects, built from their Go modules, for tests and measurements beside a control plane.

Beside the program, its module's `config/components` are kept: the CRDs, rights and webhooks of its installation.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Final

import yaml

from videotrain.controlplane.api import Api
from videotrain.controlplane.build import find_go, run_go
from videotrain.controlplane.cache import cache_folder
from videotrain.controlplane.component import Component
from videotrain.controlplane.errors import ControlPlaneError
from videotrain.locks import awaited
from videotrain_api.schema import Json

START_SECONDS: Final = 240.0
"""For a controller to be ready, on a machine that is busy with other things."""
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Controller:
    """What a controller is built from."""

    name: str
    """Of the program and of its folder in the cache."""
    sources: Path
    """Folder with the go.mod and go.sum that pin it."""
    module: str
    """Such as `sigs.k8s.io/kueue`."""
    package: str
    """The program's package, in that module."""


@dataclass(frozen=True)
class Installation:
    """What the module gives: the program, and the manifests beside it."""

    program: Path
    components: Path
    """The folder config/components of the module."""

    def documents(self, *parts: str) -> Iterator[Json]:
        """Objects of one of its files."""
        text = self.components.joinpath(*parts).read_text()
        return (document for document in yaml.safe_load_all(text) if document)


def installation(controller: Controller) -> Installation:
    """A controller in the user's cache, built there if it is missing.

    Raises:
        BuildError: there is no Go, its modules cannot be fetched, or it does not compile.
    """
    files = {name: (controller.sources / name).read_bytes() for name in ("go.mod", "go.sum")}
    folder = cache_folder(controller.name, sha256(b"\0".join(files.values())).hexdigest()[:16])
    found = Installation(folder / controller.name, folder / "components")
    with awaited(folder):
        if not found.program.is_file():
            _build(controller, found, files)
    return found


def _build(controller: Controller, wanted: Installation, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=wanted.program.parent) as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        go = find_go()
        run_go(go, ["mod", "download"], folder)
        module = Path(run_go(go, ["list", "-m", "-f", "{{.Dir}}", controller.module], folder).strip())
        output = Path(folder, controller.name)
        flags = ["-mod=readonly", "-trimpath", "-ldflags=-s -w", f"-p={os.cpu_count() or 1}"]
        run_go(go, ["build", *flags, "-o", str(output), controller.package], folder)
        shutil.rmtree(wanted.components, ignore_errors=True)
        shutil.copytree(module / "config" / "components", wanted.components)
        for path in [wanted.components, *wanted.components.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)  # a module cache is read-only
        output.replace(wanted.program)  # last: with it, everything is there


def wait_until_ready(process: Component, api: Api, health: str, namespace: str) -> None:
    """Wait until a controller that was started is ready and leads.

    Args:
        process: of the controller.
        api: requests as an administrator.
        health: where it serves its probes, such as `127.0.0.1:8081`.
        namespace: of its Lease.

    Raises:
        ComponentEnded: it ended by itself.
        ControlPlaneError: it is not ready in time; the message holds the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(api, health, namespace):
        process.check()
        if time.monotonic() > deadline:
            raise ControlPlaneError(
                f"{process.name} is not ready within {START_SECONDS:g} s; the end of its log:\n{process.tail(40)}"
            )
        time.sleep(POLL_SECONDS)


def _is_ready(api: Api, health: str, namespace: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{health}/readyz", timeout=5) as answer:
            served = answer.status == HTTPStatus.OK
    except OSError:
        return False
    leases = api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")["items"] if served else []
    return any(lease["spec"].get("holderIdentity") for lease in leases)
