"""What a bill took back: amounts that were counted under one name first and turned out to belong under another.

A monitor takes every fall of a counter for a beginning at zero and counts the rest again. So its counters show what was
counted first, and what moved since is counted beside them: what left a name, and what came to it. Both only rise, and
what is counted first, less what left, with what came, is the bill.
"""

from __future__ import annotations

from collections.abc import Mapping

from videotrain_api.money import split
from videotrain_api.resource.status import Correction


def corrected(known: Correction | None, before: Mapping[str, int], now: Mapping[str, int]) -> Correction | None:
    """The corrections with those between two looks at the bill; None while there was none.

    What fell left its name, and came to the names that rose, as far as they did: the rest was never held.

    Args:
        known: up to the look before.
        before: amounts of the bill at that look, by name.
        now: amounts at this one.
    """
    changes = {name: now.get(name, 0) - before.get(name, 0) for name in {**before, **now}}
    fell = {name: -change for name, change in changes.items() if change < 0}
    if not fell:
        return known
    rose = {name: change for name, change in changes.items() if change > 0}
    came = split(min(sum(fell.values()), sum(rose.values())), rose)
    known = known or Correction(out={}, into={})
    return Correction(out=_added(known.out, fell), into=_added(known.into, came))


def counted(now: Mapping[str, int], correction: Correction | None) -> dict[str, int]:
    """What was counted first, by name, of a bill and its corrections."""
    if correction is None:
        return dict(now)
    names = {**now, **correction.out, **correction.into}
    return {name: now.get(name, 0) + correction.out.get(name, 0) - correction.into.get(name, 0) for name in names}


def _added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    names = sorted({**first, **second})
    return {name: first.get(name, 0) + second.get(name, 0) for name in names}
