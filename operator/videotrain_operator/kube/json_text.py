"""Reading and writing JSON of the API server, which stores objects of 10,000 levels.

Python's own reader needs a stack of that depth: it fails at a thousand levels, and with a higher recursion limit it
overflows the C stack, which ends the process. Here what lies deeper than anything that is looked at is cut away.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from pydantic_core import PydanticSerializationError, from_json, to_json

DEEPEST: Final = 128
"""Levels that are kept: twice what a manifest may have, so that one that is too deep is seen to be so."""
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)
"""A text, whole or cut off, or a bracket; takes time linear in the length, whatever stands there."""


def read_json(data: bytes | str) -> Any:
    """JSON data, with null in the place of whatever is nested deeper than DEEPEST levels.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return from_json(data, cache_strings="none")  # looking strings up costs more than making them
    except ValueError as error:
        if "recursion limit" not in str(error):
            raise
    return from_json(_pruned(data.encode() if isinstance(data, str) else data))


def write_json(data: Any) -> bytes:
    """JSON of data, a fifth of the time of Python's own writer.

    Raises:
        TypeError: something in it is no JSON data.
    """
    try:
        return to_json(data)
    except PydanticSerializationError:  # half a surrogate pair, which a text of a stranger's may hold
        return json.dumps(data).encode()


def _pruned(data: bytes) -> bytes:
    kept, begin, depth = bytearray(), 0, 0
    for token in _TOKEN.finditer(data):
        letter = data[token.start()]
        if letter in b"[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept += data[begin : token.start()] + b"null"
        elif letter in b"]}":
            if depth == DEEPEST + 1:
                begin = token.end()
            depth -= 1
    return bytes(kept) + (data[begin:] if depth <= DEEPEST else b"")
