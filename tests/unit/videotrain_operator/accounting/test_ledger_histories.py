"""Random histories: whatever happens, buckets sum to what was held, and what is closed stays."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.at_length import cases
from support.ledgers import History, bill, check_identity, held_microseconds, histories, known_at
from support.planner_builders import START, at

from videotrain_operator.accounting.ledger import Bill


@given(histories())
def test_buckets_sum_to_what_was_held_at_any_time(history: History) -> None:
    for now in (0.0, history.end / 3, history.end / 2, history.end):
        pods, worlds = known_at(history, now)
        check_identity(bill(now, pods, worlds), pods, now)


@given(histories(), st.lists(st.floats(0, 1), max_size=8))
def test_it_does_not_matter_when_the_operator_looked(history: History, looks: list[float]) -> None:
    """Closed entries never change, settling again changes nothing, and each look accounts for all that was held."""
    document: dict[str, Any] | None = None
    closed: list[dict[str, Any]] = []
    for now in [*sorted(look * history.end for look in looks), history.end]:
        pods, worlds = known_at(history, now)
        one = bill(now, pods, worlds, document=document)
        check_identity(one, pods, now)
        again = bill(now, pods, worlds, document=json.loads(json.dumps(one.document)))
        assert (again.document, again.gpu_microseconds, again.micros) == (
            one.document,
            one.gpu_microseconds,
            one.micros,
        )
        entries = one.document["entries"]
        assert [entry for entry in entries if entry in closed] == closed
        closed, document = entries, json.loads(json.dumps(one.document))


@given(histories())
def test_a_replay_by_a_new_operator_gives_the_same_bill(history: History) -> None:
    pods, worlds = known_at(history, history.end)
    once = bill(history.end, pods, worlds)
    stored = json.loads(json.dumps(once.document))
    later = bill(history.end, pods, worlds, document=stored)
    assert (later.gpu_microseconds, later.micros) == (once.gpu_microseconds, once.micros)


@given(histories())
def test_money_is_the_price_of_the_time_to_within_half_a_micro_per_entry(history: History) -> None:
    pods, worlds = known_at(history, history.end)
    one = bill(history.end, pods, worlds)
    exact = sum(
        held_microseconds([pod], at(history.end)) * (1_370_000 if pod.price.startswith("1.37") else 2_000_000) / 3.6e9
        for pod in pods
    )
    assert abs(one.total - exact) <= 0.5 * len(pods) * (len(worlds) + 1) + 1e-3


def test_the_beginning_of_time_is_noon() -> None:
    assert at(0) == START


def at_the_end(history: History, looks: list[float]) -> Bill:
    """The bill of a run that is over and whose pods have ended, looked at now and then before that."""
    document: dict[str, Any] | None = None
    last = None
    for now in sorted(look * history.end for look in looks):
        pods, worlds = known_at(history, now)
        one = bill(now, pods, worlds, document=document, observed_at=last)
        document, last = json.loads(json.dumps(one.document)), at(now)
    over = [pod._replace(finished_at=pod.finished_at or at(history.end)) for pod in history.pods]
    return bill(history.end + 300, over, history.generations, document=document, observed_at=last, run_over=True)


LOOKS = st.lists(st.floats(0, 1), max_size=12)


@given(histories(), LOOKS, LOOKS)
@settings(max_examples=cases(300, 1500))
def test_the_split_does_not_depend_on_when_the_operator_looked(
    history: History, looks: list[float], others: list[float]
) -> None:
    one, other = at_the_end(history, looks), at_the_end(history, others)
    assert one.gpu_microseconds == other.gpu_microseconds
    assert one.micros == other.micros
