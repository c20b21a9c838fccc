"""Building and looking into images with buildah."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
"""What images/operator.Dockerfile starts from."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def buildah(*arguments: str, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run buildah."""
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False, cwd=cwd, timeout=1200)
    assert not check or done.returncode == 0, f"buildah {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr}"
    return done


@dataclass(frozen=True)
class Image:
    """An image in the local store."""

    name: str

    @classmethod
    def build(cls, part: str, folder: Path) -> Image:
        """Build images/PART.Dockerfile."""
        image = cls(f"localhost/videotrain/{part}:{folder.name.lower()}")
        dockerfile = f"images/{part}.Dockerfile"
        command = ["build", "--isolation", "chroot", "--layers=false", "--pull-never", "--file", dockerfile]
        command += ["--ignorefile", f"{dockerfile}.dockerignore", "--tag", image.name]
        if AUTHORITIES.exists():  # this machine may trust more than the base does
            command += ["--volume", f"{AUTHORITIES}:{AUTHORITIES}:ro"]
        buildah(*command, ".")
        return image

    @property
    def config(self) -> dict[str, Any]:
        """What a container starts with."""
        found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", self.name).stdout)
        return dict(found["OCIv1"]["config"])

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        (found,) = json.loads(buildah("images", "--json", self.name).stdout)
        number, unit = found["size"].split()
        return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a fresh container, as the image's user."""
        container = buildah("from", "--pull-never", self.name).stdout.strip()
        try:
            return buildah("run", "--isolation", "chroot", container, "--", *command, check=False)
        finally:
            buildah("rm", container)

    def remove(self) -> None:
        """Forget it."""
        buildah("rmi", "--force", self.name)
