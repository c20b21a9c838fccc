"""Names of pods in few letters: `demo-w[0-3,7]`, as batch systems write lists of hosts.

The status of a run names the members of its newest generations. Spelled out, 4,096 names would be 0.2 MB each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

MOST_NAMES: Final = 8192
"""Names that a text may stand for: as many pods as a run of the largest size has while all of them are replaced."""
_NUMBERED: Final = re.compile(r"(.*?)(0|[1-9][0-9]{0,8})", re.ASCII)
_PART: Final = re.compile(r"([^,\[\]]+)(?:\[([0-9,-]+)\])?(?:,|$)", re.ASCII)


def short_names(names: Sequence[str]) -> str:
    """Names as one text, in their order; see `spelled_out`."""
    return _short(tuple(names))


@lru_cache(maxsize=64)
def _short(names: tuple[str, ...]) -> str:
    parts = []
    for prefix, group in groupby(map(_split, names), key=lambda item: item[0]):
        numbers = [number for _, number in group]
        if prefix is None or len(numbers) == 1:
            parts += [f"{prefix or ''}{number}" for number in numbers]
        else:
            parts.append(f"{prefix}[{','.join(_ranges(int(number) for number in numbers))}]")
    return ",".join(parts)


def spelled_out(text: str) -> list[str]:
    """The names that a text stands for.

    Raises:
        ValueError: it is no such text, or stands for more than MOST_NAMES.
    """
    return list(_spelled_out(text))


@lru_cache(maxsize=64)
def _spelled_out(text: str) -> tuple[str, ...]:
    names: list[str] = []
    place = 0
    while place < len(text):
        part = _PART.match(text, place)
        if part is None:
            raise ValueError(f"no list of names such as demo-w[0-3,7]: {text[:80]!r}")
        prefix, ranges = part.groups()
        if ranges is None:
            names.append(prefix)
        for first, last in map(_bounds, ranges.split(",")) if ranges else ():
            names += [f"{prefix}{number}" for number in range(first, last + 1)]
            if len(names) > MOST_NAMES:
                break
        if len(names) > MOST_NAMES:
            raise ValueError(f"more than {MOST_NAMES} names: {text[:80]!r}")
        place = part.end()
    return tuple(names)


def _split(name: str) -> tuple[str | None, str]:
    """A name before its number, and the number; None and the name if it has none."""
    found = _NUMBERED.fullmatch(name)
    return (found[1], found[2]) if found and found[1] else (None, name)


def _ranges(numbers: Iterable[int]) -> Iterable[str]:
    for _, group in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        run = [number for _, number in group]
        yield str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _bounds(text: str) -> tuple[int, int]:
    """First and last number of a range such as `3-7` or `3`."""
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if not 0 <= high - low < MOST_NAMES:
        raise ValueError(f"no range of at most {MOST_NAMES} numbers: {text!r}")
    return low, high


def _read(value: Any) -> Any:
    return spelled_out(value) if isinstance(value, str) else value


NameRanges = Annotated[
    list[str],
    BeforeValidator(_read),
    PlainSerializer(short_names, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string"}),
]
"""A list of names, short on the wire."""
