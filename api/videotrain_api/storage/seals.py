"""What the checksum of a sealed JSON object covers, so that its writer and all its readers agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

FIELD: Final = "crc32c"
"""Field of a sealed object: CRC-32C of the `content` of the others, 8 hex digits."""


def content(fields: Mapping[str, Any]) -> bytes:
    """The bytes that the checksum is of: the fields but the checksum, whatever their order and layout."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
