"""The base of every API model and the errors that users read.

All models are closed (an unknown field is refused, with the nearest known name), immutable after construction and spell
their fields in camelCase on the wire, as Kubernetes does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic.fields import FieldInfo

from videotrain_api.refusals import refusal

Json = dict[str, Any]
"""An object of JSON, such as a resource that no model reads."""

DEEPEST: Final = 64
"""Levels of a manifest. A pod has about a dozen; a thousand stop most JSON readers, and so whoever watches the run."""
_PATTERN_MEANINGS: dict[str, str] = {}


def patterned(pattern: str, meaning: str, max_length: int | None = None) -> StringConstraints:
    """A string constraint whose refusal tells people what is allowed instead of showing them the expression."""
    _PATTERN_MEANINGS[pattern] = meaning
    return StringConstraints(pattern=pattern, max_length=max_length)


def pattern_meaning(pattern: str) -> str:
    """What a pattern allows, in words; the pattern itself if nobody gave them."""
    return _PATTERN_MEANINGS.get(pattern, pattern)


def camel_case(name: str) -> str:
    """`i2v_head` becomes `i2vHead` (pydantic's own function would make it `i2VHead`)."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


MOST_PROBLEMS: Final = 1000
"""Of one manifest; a suggestion for each of 200,000 unknown fields would take half a minute."""


class ApiModel(BaseModel):
    """A closed, immutable model with camelCase names on the wire."""

    model_config = ConfigDict(
        alias_generator=camel_case,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )

    def to_wire(self) -> dict[str, Any]:
        """The model as JSON-compatible data: camelCase names, unset (None) fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_wire(cls, data: Any) -> Self:
        """Parse JSON-compatible data.

        Raises:
            ManifestError: the data does not fit; every problem is listed with its field path.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ManifestError(problems_of(error, cls)) from None


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a manifest."""

    path: str
    """Where: a field path such as `spec.stages[1].train.buckets[0].frames`."""
    value: Any
    """What was found there."""
    message: str
    """What is allowed, and where to change it."""

    def __str__(self) -> str:
        """`path: value: message`, the form in which users meet it."""
        shown = repr(self.value)
        return f"{self.path}: {shown if len(shown) <= 120 else shown[:117] + '...'}: {self.message}"


class ManifestError(ValueError):
    """A manifest that cannot be accepted; `problems` lists everything wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Turn pydantic's errors into problems with Kubernetes field paths and suggestions for misspelled names.

    The first MOST_PROBLEMS of them, and one that says how many more there are.
    """
    problems = [_problem(dict(item), model) for item in error.errors(include_url=False)[:MOST_PROBLEMS]]
    more = error.error_count() - len(problems)
    return (
        [*problems, Problem("(root)", more, f"so many more; the first {MOST_PROBLEMS} are told")] if more else problems
    )


def _problem(item: dict[str, Any], model: type[BaseModel]) -> Problem:
    location = tuple(item["loc"])
    if item["type"] == "missing":
        return Problem(field_path(location), None, "this field is required")
    if item["type"] == "extra_forbidden":
        message = _unknown_field(location, model)
    elif item["type"] in ("model_type", "model_attributes_type"):
        message = f"allowed: a mapping of the fields {', '.join(sorted(_wire_names(_model_at(model, location))))}"
    elif item["type"] == "string_pattern_mismatch":
        message = f"allowed: {pattern_meaning(item['ctx']['pattern'])}"
    else:
        message = refusal(item, _field_at(model, location))
    return Problem(field_path(location) or "(root)", item.get("input"), message)


def _field_at(model: type[BaseModel], location: tuple[int | str, ...]) -> FieldInfo | None:
    if not location:  # a rule of the whole document
        return None
    parent = _model_at(model, location[:-1])
    named = (f for n, f in (parent.model_fields if parent else {}).items() if location[-1] in (n, f.alias))
    return next(named, None)


def _unknown_field(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = sorted(_wire_names(_model_at(model, location[:-1])))
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown field; {hint}known fields here: {', '.join(known)}"


def _wire_names(model: type[BaseModel] | None) -> Iterator[str]:
    for name, field in (model.model_fields if model else {}).items():
        yield field.alias or name


def _model_at(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> type[BaseModel] | None:
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        match = [f for n, f in model.model_fields.items() if part in (n, f.alias)]
        model = next(iter(models_in(match[0].annotation)), None) if match else None
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def field_path(location: tuple[int | str, ...]) -> str:
    """`('spec', 'stages', 1, 'name')` becomes `spec.stages[1].name`."""
    text = ""
    for part in location:
        if part == "[key]":  # pydantic's word for the name of an entry, which stands before it
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
