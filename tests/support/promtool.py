"""Prometheus' own judge of a metrics page: `promtool check metrics`.

promtool is taken from PATH, else from Debian's prometheus package, unpacked (not installed) into the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def check_metrics(text: str) -> None:
    """Raise AssertionError with promtool's words if it objects to the page."""
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"promtool: {done.stdout}{done.stderr}"


def promtool() -> str:
    """Path of a promtool that runs here."""
    found = shutil.which("promtool")
    if found:
        return found
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "videotrain" / "prometheus"
    unpacked = cache / "root" / "usr" / "bin" / "promtool"
    if not unpacked.exists():
        _unpack_debian_package(cache)
    return str(unpacked)


def _unpack_debian_package(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["apt-get", "download", "prometheus"], cwd=cache, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
        subprocess.run(["apt-get", "download", "prometheus"], cwd=cache, check=True, capture_output=True)
    package = next(cache.glob("prometheus_*.deb"))
    subprocess.run(["dpkg", "-x", str(package), str(cache / "root")], check=True, capture_output=True)
