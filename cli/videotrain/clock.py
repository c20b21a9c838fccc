"""Times as an API server writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """This moment in RFC 3339, UTC, microseconds."""
    return rfc3339(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    """A moment as `2026-11-23T06:22:58.123456Z`; strings of this form sort by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """The aware time of an RFC 3339 text, as `rfc3339` writes it."""
    return datetime.fromisoformat(text)
