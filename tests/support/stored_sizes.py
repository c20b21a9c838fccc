"""Bytes of objects as the API server stores them."""

from __future__ import annotations

import json
from typing import Any


def go_json(data: Any) -> bytes:
    """JSON as Go writes it: without spaces, and with what HTML could misread spelled out."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode()
