"""Fields of a manifest that a command line gives other values, as `--set PATH=VALUE`."""

from __future__ import annotations

import re
from typing import Any, Final

from videotrain.errors import UsageError
from videotrain.strict_yaml import YamlRefused, parse_documents
from videotrain_api.crd.definition import root_schema
from videotrain_api.schema import Json

_PART: Final = re.compile(r"([^.\[\]]+)|\[([^\[\]]+)\]")
_HEADS: Final = ("spec", "metadata")


def set_field(document: Json, assignment: str) -> None:
    """Give one field of a VideoTrainingRun another value.

    Args:
        document: changed in place; mappings on the way are made if they are missing.
        assignment: `nodes.max=4`, `spec.stages[2].train.steps=40` or `stages[train].train.steps=40`: a place in a list
            is counted from 0, or named; so is a key that has dots, as in `metadata.labels[videotrain.dev/team]=video`.
            `null` removes the field. Where the field is a text, so is the value, as it stands; else it is YAML.

    Raises:
        UsageError: there is no such place, or the value is no YAML.
    """
    path, equals, text = assignment.partition("=")
    parts = [name or f"[{index}]" for name, index in _PART.findall(path)]
    if not equals or not parts or "".join(part if part[0] == "[" else f".{part}" for part in parts)[1:] != path:
        raise UsageError(f"--set {assignment}: PATH=VALUE is needed, such as nodes.max=4 or stages[0].train.steps=9")
    if parts[0] not in _HEADS:
        parts.insert(0, "spec")
    place: Any = document
    schema = root_schema()
    for part in parts[:-1]:
        part = _plain(place, part, schema)
        place, schema = _below(place, part, assignment), _schema_below(schema, part)
    last = _plain(place, parts[-1], schema)
    value = _value(text, _schema_below(schema, last), assignment)
    key = _index(place, last, assignment) if last[0] == "[" else last
    if isinstance(place, list) == isinstance(key, str):
        raise UsageError(f"--set {assignment}: {last} is not in a {'list' if isinstance(key, int) else 'mapping'}")
    if value is None:
        _remove(place, key)
    else:
        place[key] = value


def _plain(place: Any, part: str, schema: Json) -> str:
    """`[KEY]` of a mapping as the key that it names, if the API knows that, or leaves keys to users."""
    if part[0] != "[" or not isinstance(place, dict) or schema.get("type") == "array":
        return part
    fields = schema.get("properties", {})
    return part[1:-1] if not fields or part[1:-1] in fields or schema.get("additionalProperties") else part


def _below(place: Any, part: str, assignment: str) -> Any:
    if part[0] == "[":
        return place[_index(place, part, assignment)]
    if not isinstance(place, dict):
        raise UsageError(f"--set {assignment}: {part!r} is in no mapping; a place in a list is [0] or [NAME]")
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _index(place: Any, part: str, assignment: str) -> int:
    wanted = part[1:-1]
    if not isinstance(place, list):
        raise UsageError(f"--set {assignment}: {part} is a place in a list, and there is none")
    names = [each.get("name") if isinstance(each, dict) else None for each in place]
    if wanted.isdecimal() and int(wanted) < len(place):
        return int(wanted)
    if wanted in names:
        return names.index(wanted)
    known = ", ".join(str(name) for name in names if name) or "none has a name"
    raise UsageError(f"--set {assignment}: {part} is not there; allowed: 0 to {len(place) - 1}, or a name ({known})")


def _remove(place: Any, key: Any) -> None:
    if isinstance(place, list) or key in place:
        del place[key]


def _schema_below(schema: Json, part: str) -> Json:
    """Of a field or item; empty where the API knows none, which validation tells better."""
    found = schema.get("items", {}) if part[0] == "[" else schema.get("properties", {}).get(part)
    more = schema.get("additionalProperties")
    return dict(found if found is not None else more if isinstance(more, dict) else {})


def _value(text: str, schema: Json, assignment: str) -> Any:
    if schema.get("type") == "string" and text[:1] not in ("'", '"') and text != "null":
        return text
    try:
        documents = parse_documents(text)
    except YamlRefused as error:
        raise UsageError(f"--set {assignment}: {error.problem}") from None
    return documents[0] if documents else ""
