"""How many bytes a text takes where the API server stores it, and how many an object may have there."""

from __future__ import annotations

from typing import Final

LARGEST_REQUEST: Final = 1536 * 1024
"""Bytes of a request that etcd takes (`--max-request-bytes`), so of an object with all its managed fields."""
LARGEST_CONFIG_MAP: Final = 1024 * 1024
"""Bytes of a config map's data, keys and values."""
LARGEST_ANNOTATIONS: Final = 256 * 1024
"""Bytes of all annotations of an object, keys and values."""
_ESCAPED: Final = {'"': 2, "\\": 2, "\n": 2, "\t": 2, "\r": 2, "<": 6, ">": 6, "&": 6, "\u2028": 6, "\u2029": 6}
"""Bytes of letters that Go's JSON, in which custom resources are stored, writes longer than UTF-8 does."""


def stored_bytes(text: str) -> int:
    """Bytes of a text within a stored object, without its quotes."""
    return len(text.encode()) + sum(text.count(c) * (size - len(c.encode())) for c, size in _ESCAPED.items())


def cut(text: str, most: int) -> str:
    """As much of the beginning of a text as takes at most so many bytes where it is stored."""
    if stored_bytes(text) <= most:
        return text
    size = 0
    for place, letter in enumerate(text):
        size += _ESCAPED.get(letter) or len(letter.encode())
        if size > most:
            return text[:place]
    return text
