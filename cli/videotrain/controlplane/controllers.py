"""Controllers of other projects, built from their Go modules, for tests and measurements beside a control plane.

Beside the program, its module's `config/components` are kept: the CRDs, rights and webhooks of its installation.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import yaml

from videotrain.controlplane.build import find_go, run_go
from videotrain.controlplane.cache import cache_folder
from videotrain.locks import awaited
from videotrain_api.schema import Json


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
