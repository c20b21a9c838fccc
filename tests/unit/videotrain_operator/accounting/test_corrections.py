"""What counters show of a bill that takes back what it said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.resource.status import Correction
from videotrain_operator.accounting.corrections import corrected, counted

BUCKETS = ("idle", "lost", "productive")
BILLS = st.lists(st.dictionaries(st.sampled_from(BUCKETS), st.integers(0, 50)), min_size=1, max_size=12)


@given(BILLS)
def test_no_counter_falls_and_with_its_corrections_each_is_the_bill(bills: list[dict[str, int]]) -> None:
    before: dict[str, int] = {}
    known: Correction | None = None
    shown: list[dict[str, int]] = [{}, {}, {}]
    for bill in bills:
        known = corrected(known, before, bill)
        after = [counted(bill, known), known.out if known else {}, known.into if known else {}]
        for then, now in zip(shown, after, strict=True):
            assert all(now.get(name, 0) >= amount for name, amount in then.items())
        for name in BUCKETS:
            first, left, came = (values.get(name, 0) for values in after)
            assert first - left + came == bill.get(name, 0)
        before, shown = bill, after


def test_steps_that_a_fault_lost_left_the_productive_ones() -> None:
    known = corrected(None, {"productive": 100}, {"productive": 60, "lost": 45})
    assert known == Correction(out={"productive": 40}, into={"lost": 40})
    assert counted({"productive": 60, "lost": 45}, known) == {"productive": 100, "lost": 5}


def test_what_was_never_held_came_nowhere() -> None:
    assert corrected(None, {"productive": 100}, {"productive": 90}) == Correction(out={"productive": 10}, into={})


def test_a_bill_that_only_rises_has_no_corrections() -> None:
    assert corrected(None, {"productive": 1}, {"productive": 2, "idle": 3}) is None
