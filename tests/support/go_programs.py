"""Programs of other projects that tests ask, built from the Go module that pins them, once on a machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from videotrain.controlplane.build import find_go, run_go
from videotrain.controlplane.cache import cache_folder
from videotrain.locks import awaited


def built_folder(name: str, module: Path) -> Path:
    """Where the programs of a module lie, or will lie.

    Args:
        name: of the folder in the cache.
        module: folder with go.mod and go.sum, and the program's own source if it has any.
    """
    digest = sha256(b"\0".join(file.read_bytes() for file in _sources(module)))
    return cache_folder(name, digest.hexdigest()[:16])


def built(name: str, module: Path, packages: Mapping[str, str], flags: Sequence[str] = ()) -> Path:
    """The folder with all programs, which are built if it lacks one.

    Args:
        name: of the folder in the cache.
        module: see `built_folder`.
        packages: the package of each program, by the program's name.
        flags: more ones for the compiler.

    Raises:
        BuildError: there is no Go, or its modules cannot be fetched.
    """
    folder = built_folder(name, module)
    with awaited(folder):
        if all((folder / program).is_file() for program in packages):
            return folder
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as build:
            for file in _sources(module):
                Path(build, file.name).write_bytes(file.read_bytes())
            go = find_go()
            run_go(go, ["mod", "download"], build)
            common = ["-mod=readonly", *flags, "-trimpath", "-ldflags=-s -w"]
            for program, package in packages.items():
                run_go(go, ["build", *common, "-o", f"{build}/{program}", package], build)
            for program in packages:
                Path(build, program).replace(folder / program)
    return folder


def _sources(module: Path) -> list[Path]:
    return [module / "go.mod", module / "go.sum", *sorted(module.glob("*.go"))]
