"""Places that a worker pod can reach: the schemes that the trainer reads, and what each kind of thing may have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from videotrain_api.references import WEIGHTS, Reference, Role, references
from videotrain_api.resource.locations import HUB_FORM, HUB_SCHEME, hub_place
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB_ID: Final = re.compile(r"(?!\.\.?/)[\w.-]+/[\w.-]+(@[\w.-]+)?(/.*)?")
_EVERYWHERE: Final = ("s3", "file", "hf")


def check_locations(facts: Facts) -> Iterator[Problem]:
    """Every URI has a scheme that its reader knows, and no path is relative: a pod has no folder to begin in."""
    for reference in references(facts.run):
        message = _refused(reference)
        if message:
            yield Problem(reference.path, reference.uri, message)


def _refused(reference: Reference) -> str | None:
    uri, allowed = reference.uri, _allowed(reference.role)
    scheme = _SCHEME.match(uri)
    if scheme is None:
        if uri.startswith("/"):
            return None if reference.role in WEIGHTS else f"a path is not read here; write file://{uri}. {allowed}"
        if _HUB_ID.fullmatch(uri):
            return f"a relative path; for a repository of the Hugging Face hub write {HUB_SCHEME}{uri}. {allowed}"
        return f"a relative path, and a worker pod has no folder to begin from. {allowed}"
    if scheme[1] not in _schemes(reference.role):
        hint = {"https": f"for the Hugging Face hub write {HUB_FORM}. ", "gs": "", "S3": "write s3://. "}
        return f"no worker reads {scheme[1]}:// here. {hint.get(scheme[1], '')}{allowed}"
    if scheme[1] == "hf" and hub_place(uri) is None:
        return f"allowed: {HUB_FORM}"
    if scheme[1] == "file" and not uri.startswith("file:///"):
        return f"a file:// URI has three slashes and an absolute path: file:///{uri.removeprefix('file://')}"
    return None


def _schemes(role: Role) -> tuple[str, ...]:
    return (*_EVERYWHERE, "package") if role == "videos" else _EVERYWHERE


def _allowed(role: Role) -> str:
    forms = ["s3://BUCKET/KEY", "file:///PATH in the pod", HUB_FORM]
    if role == "videos":
        forms.append("package://MODULE/FOLDER")
    return f"allowed: {', '.join(forms)}"
