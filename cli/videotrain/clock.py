"""Times as an API server writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from videotrain_api.times import rfc3339


def utc_now(timespec: Literal["seconds", "microseconds"] = "microseconds") -> str:
    """This moment in RFC 3339 and UTC; with microseconds the texts sort by time."""
    return rfc3339(datetime.now(UTC), timespec)


def parse_time(text: str) -> datetime:
    """The aware time of an RFC 3339 text."""
    return datetime.fromisoformat(text)
