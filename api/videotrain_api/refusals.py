"""Why pydantic refuses a value, in the words of its writer: what is allowed there, with the limits of the field."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo


def refusal(item: Mapping[str, Any], field: FieldInfo | None) -> str:
    """What is allowed where one of pydantic's errors stands; its own words for types that no manifest can provoke.

    Args:
        item: one of `ValidationError.errors()`.
        field: the field that it is about, for its limits; None for an entry of a list or mapping.
    """
    context = item.get("ctx", {})
    match item["type"]:
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return f"allowed: an integer{_limits(field)}{_unquoted(item)}"
        case "float_type" | "float_parsing" | "finite_number":
            return f"allowed: a finite number{_limits(field)}{_unquoted(item)}"
        case "bool_type" | "bool_parsing":
            return f"allowed: true or false{_unquoted(item)}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than" | "multiple_of":
            return f"allowed: a number{_limits(field) or _limit(context)}"
        case "string_type":
            is_number = isinstance(item.get("input"), int | float)
            return "must be a string: put it in quotes" if is_number else "allowed: a string"
        case "string_too_short" | "string_too_long":
            return f"allowed: {_count(context, 'character')}"
        case "too_short" | "too_long":
            return f"allowed: {_count(context, 'entry', 'entries')}"
        case "list_type" | "tuple_type":
            return "allowed: a list (`[value, value]`, or lines that begin with `-`)"
        case "dict_type" | "mapping_type":
            return "allowed: a mapping (`name: value`)"
        case "literal_error" | "enum":
            return _choice(item, str(context["expected"]))
    return str(item["msg"]).removeprefix("Value error, ")


def _unquoted(item: Mapping[str, Any]) -> str:
    return ", without quotes" if isinstance(item.get("input"), str) else ""


def _limits(field: FieldInfo | None) -> str:
    """The field's own limits, such as ` from 1 to 64`."""
    found = {
        name: getattr(part, name)
        for part in (field.metadata if field else [])
        for name in ("ge", "gt", "le", "lt", "multiple_of")
        if getattr(part, name, None) is not None
    }
    return _limit(found)


def _limit(found: Mapping[str, Any]) -> str:
    if "ge" in found and "le" in found:
        bounds = f" from {found['ge']} to {found['le']}"
    else:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        told = [f"{word} {found[name]}" for name, word in words.items() if name in found]
        bounds = f", {' and '.join(told)}" if told else ""
    return bounds + (f", a multiple of {found['multiple_of']}" if "multiple_of" in found else "")


def _count(context: Mapping[str, Any], one: str, many: str | None = None) -> str:
    least, most = context.get("min_length"), context.get("max_length")
    number = least if least is not None else most
    unit = one if number == 1 else many or f"{one}s"
    return f"at least {least} {unit}" if least is not None else f"at most {most} {unit}"


def _choice(item: Mapping[str, Any], expected: str) -> str:
    allowed = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    near = difflib.get_close_matches(str(item.get("input")), allowed, n=1, cutoff=0.5)
    return (f"did you mean '{near[0]}'? " if near else "") + f"allowed: {expected}"
