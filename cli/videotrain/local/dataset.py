"""Where a local run's raw videos are: `--data`, `package://MODULE/FOLDER` and `file://` come down to a folder here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import unquote, urlsplit


class DatasetError(Exception):
    """The raw videos are not where the run says."""


def resolve_videos(videos: str | None, data: Path | None) -> str | None:
    """The URI of the raw videos for the trainer.

    Args:
        videos: spec.dataset.videos.
        data: folder of --data; it wins.

    Raises:
        DatasetError: the folder or package is missing, or there is no file in it.
    """
    if data is not None:
        return _folder(data.absolute(), f"--data {data}")
    if videos is None:
        return None
    field = f"spec.dataset.videos {videos!r}"
    parts = urlsplit(videos)
    if parts.scheme == "package":
        return _folder(_package_folder(parts.netloc, parts.path.strip("/"), field), field)
    if parts.scheme == "file":
        return _folder(Path(unquote(parts.path)), field)
    return videos


def _folder(path: Path, field: str) -> str:
    if not path.exists():
        raise DatasetError(f"{field}: the folder {path} does not exist; give a folder of videos with --data DIR")
    if not path.is_dir():
        raise DatasetError(f"{field}: {path} is a file; a folder of videos is needed")
    try:
        empty = not any(entry.is_file() for entry in path.rglob("*"))
    except OSError as error:
        raise DatasetError(f"{field}: {path} cannot be read: {error.strerror}") from None
    if empty:
        raise DatasetError(
            f"{field}: the folder {path} is empty; put at least one video there, or give another --data DIR"
        )
    return path.resolve().as_uri()


def _package_folder(module: str, folder: str, field: str) -> Path:
    """The folder of an installed package, found without running the package's code."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DatasetError(
            f"{field}: the package {top!r} is not installed; install it, or give a folder of videos with --data DIR"
        )
    base = Path(next(iter(spec.submodule_search_locations)))
    return base.joinpath(*rest, *folder.split("/"))
