"""Where a local run's raw videos are: `--data`, `package://MODULE/FOLDER` and `file://` come down to a folder here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import unquote, urlsplit

from videotrain_api.resource.trainrun import Dataset


class DatasetError(Exception):
    """The raw videos are not where the run says."""


def resolve_videos(dataset: Dataset, data: Path | None) -> dict[str, str]:
    """Where the trainer finds the raw videos, by name of the source: see Dataset.raw.

    Args:
        dataset: of the manifest.
        data: folder of --data; it is used instead of spec.dataset.videos.

    Raises:
        DatasetError: a folder or package is missing, or there is no file in it; or --data meets several sources.
    """
    if data is not None and dataset.sources:
        raise DatasetError(f"--data {data}: the run names spec.dataset.sources; change them there")
    if data is not None:
        return {"": _folder(data.absolute(), f"--data {data}")}
    files = {source.name for source in dataset.sources if source.form == "list"}
    return {name: uri if name in files else _resolved(uri, name) for name, uri in dataset.raw.items()}


def _resolved(videos: str, source: str) -> str:
    field = f"spec.dataset.sources[{source}].uri {videos!r}" if source else f"spec.dataset.videos {videos!r}"
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
