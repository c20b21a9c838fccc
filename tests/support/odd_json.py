"""JSON as an attacker or a fault may leave it: bytes that were changed, and values that nobody expects."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

LINE = "\x1b[31m\n2026 ERROR forged"
ODD: tuple[Any, ...] = (
    *(None, True, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "\ud800", "\x00", LINE, "x" * 100_000),
    *([], {}, [[]] * 1000, {"": {}}, {"a": [None] * 10_000}),
)
"""Values in the place of others."""


def mutated(draw: random.Random, data: Any) -> bytes:
    """The JSON of some data after a few changes: of its values, of its bytes or of both."""
    changed = copy.deepcopy(data)
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        _change_a_value(draw, changed)
    text = bytearray(json.dumps(changed).encode())
    if draw.random() < 0.3:
        for _ in range(draw.randint(1, 8)):
            text[draw.randrange(len(text))] = draw.randrange(256)
    if draw.random() < 0.1:
        del text[draw.randrange(len(text)) :]
    if draw.random() < 0.1:
        cut = draw.randint(0, len(text))
        text[cut:cut] = draw.choice((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b'"a": 1, ' * 100))
    return bytes(text)


def _change_a_value(draw: random.Random, data: Any) -> None:
    places = list(_places(data))
    if not places:
        return
    holder, key = draw.choice(places)
    match draw.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(("unknown", "", "\ud800", "k" * 10_000))] = holder[key]
        case _:
            holder[key] = copy.deepcopy(draw.choice(ODD))


def _places(data: Any) -> Any:
    keys = range(len(data)) if isinstance(data, list) else list(data) if isinstance(data, dict) else ()
    for key in keys:
        yield data, key
        yield from _places(data[key])
