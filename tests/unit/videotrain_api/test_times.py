"""Moments as texts."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from videotrain_api.times import rfc3339

WHOLE = datetime(2026, 11, 23, 6, 22, 58, tzinfo=UTC)
PART = WHOLE + timedelta(microseconds=120)


@pytest.mark.parametrize(
    ("moment", "timespec", "text"),
    [
        (WHOLE, "auto", "2026-11-23T06:22:58Z"),
        (PART, "auto", "2026-11-23T06:22:58.000120Z"),
        (PART, "seconds", "2026-11-23T06:22:58Z"),
        (WHOLE, "microseconds", "2026-11-23T06:22:58.000000Z"),
        (WHOLE.astimezone(timezone(timedelta(hours=2))), "auto", "2026-11-23T06:22:58Z"),
    ],
)
def test_moments_are_written_in_utc(moment, timespec, text):
    assert rfc3339(moment, timespec) == text
    assert abs(datetime.fromisoformat(text) - moment) < timedelta(seconds=1)
