"""Counters of a bill that may be corrected."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from videotrain_operator.accounting.counters import raised

BUCKETS = ("idle", "lost", "productive")
BILLS = st.lists(st.dictionaries(st.sampled_from(BUCKETS), st.integers(0, 50)), min_size=1, max_size=12)


@given(BILLS)
def test_no_counter_falls_and_their_sum_is_the_highest_bill(bills: list[dict[str, int]]) -> None:
    shown: dict[str, int] = {}
    highest = 0
    for actual in bills:
        after = raised(shown, actual)
        highest = max(highest, sum(actual.values()))
        assert all(after[name] >= amount for name, amount in shown.items())
        assert sum(after.values()) == highest
        assert all(after[name] <= max(actual.get(name, 0), shown.get(name, 0)) for name in after)
        shown = after


@given(BILLS)
def test_counters_are_right_as_soon_as_none_is_too_high(bills: list[dict[str, int]]) -> None:
    shown: dict[str, int] = {}
    for actual in bills:
        shown = raised(shown, actual)
    passed = {name: amount + 1 for name, amount in shown.items()}
    assert raised(shown, passed) == passed


def test_time_that_turns_out_to_be_lost_is_counted_once() -> None:
    running = raised({}, {"productive": 100})
    corrected = raised(running, {"productive": 60, "lost": 40})
    assert corrected == {"productive": 100, "lost": 0}
    later = raised(corrected, {"productive": 90, "lost": 40})
    assert later == {"productive": 100, "lost": 30}
    assert raised(later, {"productive": 130, "lost": 40}) == {"productive": 130, "lost": 40}
