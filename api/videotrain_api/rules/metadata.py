"""Object metadata that the API server takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Final

from videotrain_api.resource.stored_size import LARGEST_ANNOTATIONS
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

_OTHERS: Final = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
)


def check_metadata(facts: Facts) -> Iterator[Problem]:
    """Fields that no object has, and more annotations than an object may carry."""
    head = facts.run.metadata
    own = [field.alias or name for name, field in type(head).model_fields.items()]
    known = sorted([*own, *_OTHERS])
    for name, value in (head.model_extra or {}).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'? " if near else ""
            yield Problem(f"metadata.{name}", value, f"unknown field; {hint}known fields here: {', '.join(known)}")
    size = sum(len(text.encode()) for entry in head.annotations.items() for text in entry)
    if size > LARGEST_ANNOTATIONS:
        yield Problem("metadata.annotations", f"{size} bytes", f"allowed: {LARGEST_ANNOTATIONS} bytes in all")
