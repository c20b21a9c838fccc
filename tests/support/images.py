"""Building and looking into images with buildah."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
"""What images/operator.Dockerfile starts from. The trainer's is built on it, too: any base of a Debian kind will do."""
POD = """
mount --make-rprivate /
mount --bind "$0" "$0"
mount -t tmpfs -o mode=1777 tmpfs "$0/tmp"
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
mkdir "$0/tmp/cache" "$0/tmp/tests"
chown 1000:1000 "$0/tmp/cache"
mount --bind -o ro "$1" "$0/tmp/tests"
mount -o remount,bind,ro "$0"
shift
exec chroot --userspec=1000:1000 "$0" "$@"
"""
"""Enters a root file system as a pod with `readOnlyRootFilesystem` does: only /tmp can be written. Its cache is
/tmp/cache, and this repository's tests are below /tmp/tests."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def buildah(*arguments: str, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run buildah."""
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False, cwd=cwd, timeout=3400)
    assert not check or done.returncode == 0, f"buildah {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr}"
    return done


@dataclass(frozen=True)
class Image:
    """An image in the local store."""

    name: str

    @classmethod
    def build(cls, part: str, folder: Path, **arguments: str) -> Image:
        """Build images/PART.Dockerfile with those build arguments."""
        image = cls(f"localhost/videotrain/{part}:{folder.name.lower()}")
        dockerfile = f"images/{part}.Dockerfile"
        command = ["build", "--isolation", "chroot", "--layers=false", "--pull-never", "--file", dockerfile]
        command += ["--ignorefile", f"{dockerfile}.dockerignore", "--tag", image.name]
        command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
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

    def run_as_a_pod(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as user 1000 on a read-only root with the image's environment; see POD."""
        container = buildah("from", "--pull-never", self.name).stdout.strip()
        try:
            root = buildah("mount", container).stdout.strip()
            enter = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", POD, root, str(ROOT / "tests")]
            environment = [*self.config["Env"], "PYTHONPATH=/tmp/tests"]
            words = [*enter, "env", "-i", *environment, *command]
            return subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
        finally:
            buildah("rm", container)

    def remove(self) -> None:
        """Forget it."""
        buildah("rmi", "--force", self.name)
