"""JSON data as the API server understands it, so that a manifest means the same in a file and in the cluster.

The API server has one kind of number, drops a known field that is null (its default applies) and takes objects that
are far too deep for programs that read them again. Where it keeps unknown fields, in a pod template, it keeps nulls as
well: there they remove fields.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

from videotrain_api.crd.definition import root_schema
from videotrain_api.schema import DEEPEST, Json, Problem, field_path

_METADATA: Final = ("labels", "annotations", "namespace", "uid", "generation")
Manifest = Json
"""A Kubernetes object as JSON data."""
Place = tuple[str | int, ...]


def as_served(manifest: Json) -> tuple[Json, list[Problem]]:
    """A manifest as the API server would hand it out, and what it could not store or nobody could read again."""
    reader = _Reader()
    parts = {"metadata": _metadata(manifest.get("metadata"))}
    parts["spec"] = reader.read(manifest.get("spec"), _schema(), ("spec",))
    return manifest | {name: part for name, part in parts.items() if name in manifest}, reader.problems


@cache
def _schema() -> Json:
    schema: Json = root_schema()["properties"]["spec"]
    return schema


def _metadata(head: Any) -> Any:
    """A label or an annotation that is null is empty; other fields that are null are unset."""
    if not isinstance(head, dict):
        return head
    known = {name: value for name, value in head.items() if value is not None or name not in _METADATA}
    for name in ("labels", "annotations"):
        if isinstance(known.get(name), dict):
            known[name] = {key: "" if value is None else value for key, value in known[name].items()}
    return known


class _Reader:
    """Walks JSON data along its schema; holds the problems that it met."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, value: Any, schema: Json, place: Place) -> Any:
        """One node; the schema is empty where nothing is known about it."""
        if isinstance(value, dict | list) and len(place) > DEEPEST:
            self._refuse(place[:3], "...", f"is nested deeper than {DEEPEST} levels, which no pod needs")
            return None
        if isinstance(value, dict):
            return self._object(value, schema, place)
        if isinstance(value, list):
            items = schema.get("items", {})
            return [self.read(item, items, (*place, number)) for number, item in enumerate(value)]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._number(value, place, whole=schema.get("type") == "integer")
        return value

    def _object(self, value: Json, schema: Json, place: Place) -> Json:
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        kept: Json = {}
        for name, part in value.items():
            below = known.get(name, others)
            if part is not None or below is None:
                kept[name] = self.read(part, below or {}, (*place, name))
        return kept

    def _number(self, value: float, place: Place, *, whole: bool) -> float:
        """Where an integer belongs, 5.0 is 5, as clients in Go write it; an integer beyond 64 bits becomes a float."""
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self._refuse(place, value, "allowed: finite numbers of 64 bits")
            return 0
        return int(number) if whole and number.is_integer() and -(2**63) <= number < 2**63 else number

    def _refuse(self, place: Place, value: Any, message: str) -> None:
        self.problems.append(Problem(field_path(place), value, message))
