"""Videos that come inside an installed Python package: package://MODULE/FOLDER."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit

from videotrain_trainer.errors import DataError


def resolve_package(uri: str, field: str) -> str:
    """A package:// URI as the file:// URI of its folder here; any other URI as it is.

    The package is found without running its code.

    Args:
        uri: of any kind.
        field: of the manifest that it stands in, for messages.

    Raises:
        DataError: the package is not installed where this process runs, or has no such folder.
    """
    parts = urlsplit(uri)
    if parts.scheme != "package":
        return uri
    top, *rest = parts.netloc.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{field}: {uri}: the package {top!r} is not installed in the worker's image; install it there "
            "(spec.image), or upload the videos and give their s3:// folder"
        )
    base = Path(next(iter(spec.submodule_search_locations)))
    folder = base.joinpath(*rest, *parts.path.strip("/").split("/"))
    if not folder.is_dir():
        raise DataError(f"{field}: {uri}: the package {top!r} has no folder {folder.relative_to(base)}")
    return folder.resolve().as_uri()
