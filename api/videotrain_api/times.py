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


def month_begin(at: datetime) -> datetime:
    """When the calendar month of a time began, in UTC."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(at: datetime) -> datetime:
    """When the calendar month of a time ends and the next begins, in UTC."""
    begin = month_begin(at)
    return begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)


def month_name(at: datetime) -> str:
    """The calendar month of a time in UTC, such as `2026-11`."""
    return at.astimezone(UTC).strftime("%Y-%m")
