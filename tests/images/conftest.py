"""Images are built for real, on a base that debootstrap makes; needs root, buildah and debootstrap."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from support.images import BASE, Image, buildah

_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = "python3,python3-venv,ca-certificates"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image under the name that the Dockerfile starts from; one that is there already is used."""
    if buildah("images", "--quiet", BASE, check=False).returncode == 0:
        return BASE
    root = tmp_path_factory.mktemp("base") / "root"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root), _MIRROR], check=True
    )
    container = buildah("from", "scratch").stdout.strip()
    buildah("add", "--quiet", container, str(root), "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="session")
def operator_image(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The operator's image, built from this repository."""
    image = Image.build("operator", tmp_path_factory.mktemp("build"))
    yield image
    image.remove()


@pytest.fixture(scope="session")
def trainer_image(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The trainer's image with FlashAttention 4, built from this repository."""
    image = Image.build("trainer", tmp_path_factory.mktemp("build"), BASE_IMAGE=base, EXTRA="flash4")
    yield image
    image.remove()


@pytest.fixture(scope="session")
def base_bytes(base: str) -> int:
    """Size of the base."""
    return Image(base).size
