"""Moments as texts, as an API server writes them. Reading is `datetime.fromisoformat`; nothing here knows the time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal


def rfc3339(moment: datetime, timespec: Literal["auto", "seconds", "microseconds"] = "auto") -> str:
    """A moment in RFC 3339 and UTC, such as `2026-11-23T06:22:58Z`.

    Args:
        moment: aware.
        timespec: `seconds` for fields of Kubernetes' type Time; `microseconds` for MicroTime, and where texts are
            sorted by time; `auto` leaves out microseconds that are zero.
    """
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
