"""Where a manifest says that things are: URIs and paths, with the keys of objects as all of the project reads them.

A key is what stands there: a percent sign and a backslash mean themselves, since nothing decodes or folds a key. But a
part of it that is empty, `.` or `..` is refused: clients and servers fold those, each in its own way, and what one of
them writes another does not find.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from videotrain_api.schema import patterned

_PARTS: Final = "(/([^{no}/.][^{no}/]*|[.][^{no}/.][^{no}/]*|[.][.][^{no}/]+))*/?"
_NO_S3: Final = "|".join(("[^s].*", "s[^3].*", "s3[^:].*", "s3:[^/].*", "s3:/[^/].*", "s|s3|s3:|s3:/"))

StorageUri = Annotated[
    str,
    patterned(
        "^s3://[a-z0-9][a-z0-9.-]{2,62}" + _PARTS.format(no=r"\s") + "$",
        "s3://BUCKET/PREFIX with a bucket name of 3 to 63 lower-case letters, digits, '.' or '-', and a prefix without "
        "spaces and without parts that are empty, '.' or '..'",
    ),
]
"""Bucket and prefix of an object store."""
Location = Annotated[
    str,
    patterned(
        "^(s3://[^/]+" + _PARTS.format(no="") + f"|{_NO_S3})?$",
        "a path, or a URI; no part of an s3:// URI may be empty, '.' or '..'",
    ),
]
"""A path, or a URI of any kind."""

HUB_SCHEME: Final = "hf://"
"""Begins URIs of files and folders of the Hugging Face hub."""
HUB_FORM: Final = "hf://[datasets/]ORGANISATION/REPOSITORY[@REVISION][/PATH]"
HUB_TARGET_FORM: Final = "hf://ORGANISATION/REPOSITORY[@BRANCH]"
"""Where models are pushed to."""
_HUB: Final = re.compile(
    r"hf://(?P<datasets>datasets/)?(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@\s]+))?(/(?P<path>[^\s].*)?)?"
)


@dataclass(frozen=True)
class HubPlace:
    """A file or folder of the Hugging Face hub."""

    kind: Literal["model", "dataset"]
    repository: str
    revision: str | None
    """Branch, tag or commit; the hub's `main` if None."""
    path: str
    """In the repository, without slashes at its ends; empty for all of it."""


def hub_place(uri: str) -> HubPlace | None:
    """The place that an hf:// URI means; None if it is none, or has another form than HUB_FORM."""
    found = _HUB.fullmatch(uri)
    if found is None:
        return None
    path = (found["path"] or "").removesuffix("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        return None
    return HubPlace("dataset" if found["datasets"] else "model", found["repository"], found["revision"], path)


def hub_target(uri: str) -> HubPlace | None:
    """The repository of models that a URI in HUB_TARGET_FORM means; None if it has another form."""
    place = hub_place(uri)
    return place if place is not None and place.kind == "model" and not place.path else None
