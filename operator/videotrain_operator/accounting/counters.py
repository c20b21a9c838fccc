"""Counters by use for a monitor, which takes every fall for a beginning at zero and counts the rest again."""

from __future__ import annotations

from collections.abc import Mapping

from videotrain_api.money import split


def raised(shown: Mapping[str, int], actual: Mapping[str, int]) -> dict[str, int]:
    """Counters that follow a bill as far as they can without ever falling.

    A bill may be corrected: a pod ended earlier than it seemed, or steps were lost that seemed productive. A counter
    that is too high then waits until the bill has come up to it, and the others grow by no more than the bill does. So
    their sum is the highest that the bill ever was, never more, and as soon as no counter is too high, each is right.

    Args:
        shown: what was shown last, by bucket.
        actual: what is so, by bucket.
    """
    lacking = {name: amount - shown.get(name, 0) for name, amount in actual.items() if amount > shown.get(name, 0)}
    room = max(0, sum(actual.values()) - sum(shown.values()))
    parts = split(room, lacking)
    return {name: shown.get(name, 0) + parts.get(name, 0) for name in {**shown, **actual}}
