"""Prometheus' own check of a metrics page: `promtool check metrics`.

promtool is taken from PATH, else from what `support.prometheus` built, else from Debian's prometheus package, unpacked
(not installed) into the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.go_programs import built_folder
from support.prometheus import MODULE, NAME


def check_metrics(text: str) -> None:
    """Raise AssertionError with promtool's words if it objects to the page."""
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"promtool: {done.stdout}{done.stderr}"


def promtool() -> str:
    """Path of a promtool that runs here; the test is skipped, with the reason, where there is none to be had."""
    found = shutil.which("promtool")
    if found:
        return found
    built = built_folder(NAME, MODULE) / "promtool"
    if built.is_file():
        return str(built)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "videotrain" / "prometheus"
    unpacked = cache / "promtool"
    if not unpacked.exists():
        try:
            _fetch(unpacked)
        except (OSError, subprocess.CalledProcessError) as error:
            words = getattr(error, "stderr", None) or error
            pytest.skip(f"promtool is not on PATH, and Debian's prometheus package cannot be fetched: {words}")
    return str(unpacked)


def _fetch(program: Path) -> None:
    """Appears whole or not at all, since several processes may want it at once."""

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)

    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        try:
            run("apt-get", "download", "prometheus")
        except subprocess.CalledProcessError:
            run("apt-get", "update", "-qq")
            run("apt-get", "download", "prometheus")
        package = next(Path(folder).glob("prometheus_*.deb"))
        run("dpkg", "-x", str(package), folder)
        (Path(folder) / "usr/bin/promtool").replace(program)
