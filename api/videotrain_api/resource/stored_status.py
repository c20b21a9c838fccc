"""Reading a status that somebody else may have written: another version of the operator, or a hand.

The reader of a status must not stop at a value that it does not know, or one edit would leave a run without anybody
who looks after it. What cannot be read is left out and counted; what is not known is kept for whoever knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from videotrain_api.resource.status import GenerationStatus, PodGroupStatus, RestartCounts, RunStatus, StageStatus
from videotrain_api.resource.training_budgets import TrainingBudgetStatus
from videotrain_api.schema import ApiModel, Json, field_path, models_in

LARGEST: Final = 2**53
"""Beyond it readers of JSON that keep numbers as floats lose digits, and a counter would no longer rise."""
YEARS: Final = range(1970, 3000)
"""Years in which adding the longest deadline to a time, or taking it away, is still a time."""
STAGE_STATES: Final = frozenset({"Pending", "Running", "Succeeded", "Failed"})
LARGEST_GROUP: Final = 4096
"""Pods; no run has more nodes."""
_KEYS: Final = {"conditions": "type", "generations": "number", "stages": "name", "podGroups": "name"}
"""What tells the items of a list apart, by the name of the list."""
_Path = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class StoredStatus:
    """A status as far as it can be read."""

    status: RunStatus
    unreadable: tuple[str, ...] = ()
    """Paths of the fields that hold no value of their kind and were left out; unknown fields are none of them."""


def read_status(data: Any) -> StoredStatus:
    """Read a stored status; raises for nothing that JSON can hold.

    A field without a readable value has its default. Where there is none, what the field belongs to is left out.

    Args:
        data: `status` of the object; one that never was JSON, as in a simulation, is as it is.
    """
    if isinstance(data, RunStatus):
        return StoredStatus(status=data)
    if not isinstance(data, Mapping):
        return StoredStatus(status=RunStatus(), unreadable=() if data is None else ("(root)",))
    left, unreadable = data, set[str]()
    while True:
        try:
            status = RunStatus.model_validate(left)
        except ValidationError as error:
            paths = {_existing(left, _target(item["loc"], item["type"])): item["type"] for item in error.errors()}
            unreadable |= {field_path(path) for path, kind in paths.items() if kind != "extra_forbidden"}
        else:
            paths = dict.fromkeys(_wire_paths(RunStatus, implausible(status)), "")
            if not paths:
                break
            unreadable |= {field_path(path) for path in paths}
        left = _without(left, paths)
    newest = max((generation.number for generation in status.generations), default=0)
    if newest > status.generation:
        status = status.model_copy(update={"generation": newest})  # numbers are never used again
    return StoredStatus(status=status, unreadable=tuple(sorted(unreadable)))


def read_budget_status(data: Any) -> TrainingBudgetStatus:
    """Read the stored status of a TrainingBudget as far as it can be read; raises for nothing that JSON can hold.

    Args:
        data: `status` of the object.
    """
    left = data if isinstance(data, Mapping) else {}
    while True:
        try:
            return TrainingBudgetStatus.model_validate(left)
        except ValidationError as error:
            left = _without(left, {_existing(left, _target(item["loc"], item["type"])) for item in error.errors()})


def with_unknown_fields(stored: Any, status: Json) -> Json:
    """A status to be written, with the fields of the stored one that this version does not know.

    Args:
        stored: `status` of the object as it was read.
        status: what this version writes in its place.
    """
    return _kept(RunStatus, stored, status) if isinstance(stored, Mapping) else status


def _kept(model: type[BaseModel], stored: Mapping[str, Any], wanted: Json) -> Json:
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    result = dict(wanted)
    for name, value in stored.items():
        inner = next(models_in(known[name].annotation), None) if name in known else None
        if name not in known:
            result[name] = value
        elif inner is None or name not in wanted:
            continue
        elif isinstance(value, Mapping) and isinstance(wanted[name], dict):
            result[name] = _kept(inner, value, wanted[name])
        elif name in _KEYS and isinstance(value, list):
            key = _KEYS[name]
            old = {str(item.get(key)): item for item in value if isinstance(item, Mapping)}
            result[name] = [_kept(inner, old.get(str(item[key]), {}), item) for item in wanted[name]]
    return result


def implausible(model: BaseModel) -> list[_Path]:
    """Paths, by attribute names, of values with which nobody can calculate, and of items that contradict others."""
    values, found = model.__dict__, list[_Path]()
    for name in _calculated(type(model)):
        value = values[name]
        if value is not None:
            found += [(name, *rest) for rest in _implausible_value(value)]
    if isinstance(model, RunStatus):
        highest = 0
        for index, generation in enumerate(model.generations):
            if generation.number <= highest:
                found.append(("generations", index))
            highest = max(highest, generation.number)
    wrong = (
        (isinstance(model, GenerationStatus) and not model.members)
        or (isinstance(model, StageStatus) and model.state not in STAGE_STATES)
        or (isinstance(model, RestartCounts) and min(model.__dict__.values()) < 0)
        or (isinstance(model, PodGroupStatus) and not 0 < model.pods <= LARGEST_GROUP)
    )
    if wrong:
        found.append(())
    return found


@cache
def _calculated(model: type[BaseModel]) -> tuple[str, ...]:
    """Fields of a model with which somebody calculates: all but texts, which are most of a status."""
    return tuple(name for name, field in model.model_fields.items() if not _is_text(field.annotation))


def _is_text(annotation: Any) -> bool:
    parts = get_args(annotation)
    return all(map(_is_text, parts)) if parts else isinstance(annotation, str) or annotation in (str, bool, type(None))


# Not written as unions where they are asked for: each time that makes a new one, and a status has hundreds of values.
_NUMBERS: Final = (int, float)
_SEQUENCES: Final = (list, tuple)
_FINE: Final[Sequence[_Path]] = ()
_ITSELF: Final[Sequence[_Path]] = ((),)


def _implausible_value(value: Any) -> Sequence[_Path]:
    """Paths within it: a pass asks this of hundreds of values and hardly ever gets one, so none is made before."""
    if isinstance(value, _NUMBERS):
        return _FINE if -LARGEST <= value <= LARGEST else _ITSELF  # also what is not a number
    if isinstance(value, str):
        return _FINE
    if isinstance(value, datetime):
        return _ITSELF if value.tzinfo is None or value.year not in YEARS else _FINE
    if isinstance(value, BaseModel):
        return implausible(value)
    if isinstance(value, _SEQUENCES):
        items: Iterable[tuple[int | str, Any]] = enumerate(value)
    elif isinstance(value, dict):
        items = value.items()
    else:
        return _FINE
    found = list[_Path]()
    for key, item in items:
        if wrong := _implausible_value(item):
            found += [(key, *rest) for rest in wrong]
    return found


def _wire_paths(model: type[ApiModel], paths: Iterable[_Path]) -> Iterator[_Path]:
    for path in paths:
        inner: type[BaseModel] | None = model
        named: list[int | str] = []
        for part in path:
            field = inner.model_fields.get(part) if inner is not None and isinstance(part, str) else None
            named.append(field.alias or part if field is not None and isinstance(part, str) else part)
            inner = next(models_in(field.annotation), None) if field is not None else inner
        yield tuple(named)


def _target(location: _Path, kind: str) -> _Path:
    """What to leave out for an error of pydantic: what misses a field it needs, else the value itself."""
    return location[:-1] if kind == "missing" else location


def _existing(data: Any, path: _Path) -> _Path:
    """The part of a path that leads somewhere; pydantic adds names of its own, such as `[key]`."""
    found: list[int | str] = []
    for part in path:
        there = (isinstance(data, Mapping) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if not there:
            break
        data = data[part]
        found.append(part)
    return tuple(found)


def _without(data: Any, paths: Iterable[_Path]) -> Any:
    """A copy without what lies at the paths; what lies elsewhere is shared."""
    inside: dict[int | str, list[_Path]] = {}
    for path in paths:
        if path:
            inside.setdefault(path[0], []).append(path[1:])
    gone = {key for key, rests in inside.items() if () in rests}
    if isinstance(data, Mapping):
        return {k: _without(v, inside[k]) if k in inside else v for k, v in data.items() if k not in gone}
    return [_without(v, inside[i]) if i in inside else v for i, v in enumerate(data) if i not in gone]
