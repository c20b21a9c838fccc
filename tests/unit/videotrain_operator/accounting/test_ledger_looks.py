"""Pods that are missing from a look, and there again or not."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledgers import SECOND, bill, generation, holding
from support.planner_builders import at, progress

from videotrain_operator.accounting.entries import ENTRIES_LISTED
from videotrain_operator.accounting.ledger import Bill


def looks(
    there: list[bool], *, over_from: int = 10**9, restarts: tuple[int, ...] = (), price: str = "3.60 USD"
) -> tuple[Bill, list[int]]:
    """A look every ten seconds at a pod bound at 4; the last bill, and what was held at each look."""
    begun = [generation(n, 10 + 20 * i, [0]) for i, n in enumerate((1, *restarts))]
    worlds = [
        world.model_copy(update={"progress": progress(world.number, 0, started_at=world.created_at)}) for world in begun
    ]
    document, held = None, []
    for look, present in enumerate(there):
        now = 10.0 * (look + 1)
        pods = [holding(0, 4, price=price if look else "3.60 USD")] if present else []
        known = [world for world in worlds if world.created_at <= at(now)]
        more: dict[str, Any] = {"document": document, "observed_at": at(now - 10), "run_over": look >= over_from}
        one = bill(now, pods, known, **more)
        document = json.loads(json.dumps(one.document))
        held.append(one.held)
    return one, held


@settings(max_examples=300)
@given(st.lists(st.booleans(), max_size=12), st.integers(0, 14), st.integers(0, 2))
def test_a_pod_that_flickers_is_billed_exactly_once_it_is_back(
    middle: list[bool], over_from: int, restarts: int
) -> None:
    there = [True, *middle, True]
    one, held = looks(there, over_from=over_from, restarts=tuple(range(2, 2 + restarts)))
    assert one.held == (10 * len(there) - 4) * SECOND
    assert held == sorted(held), "what is held never falls"
    assert one.total == one.held * 3_600_000 // (3600 * SECOND)


def test_a_pod_that_is_missing_is_billed_to_its_last_look_and_estimated() -> None:
    one, _ = looks([True, True, False])
    assert one.held == 16 * SECOND and one.estimated


def test_the_price_of_the_first_look_holds() -> None:
    one, _ = looks([True, True, True], price="0 USD")
    assert one.total == 26 * 1000


def test_a_pod_that_came_and_went_between_two_writes_is_billed_once_or_marked() -> None:
    short = holding(1, 12, finished_at=at(18), gone=True)
    stored = bill(11, [holding(0, 4)], []).document
    one = bill(20, [holding(0, 4), short], [], document=stored, observed_at=at(11))
    assert one.held == (16 + 6) * SECOND and not one.estimated
    killed = holding(2, 12, gone=True)
    one = bill(20, [holding(0, 4), killed], [], document=stored, observed_at=at(15))
    assert one.held == 16 * SECOND and one.estimated, "the look at 15 had it not, or it would be in the ledger"


def test_a_pod_that_is_closed_and_told_of_again_is_not_billed_again() -> None:
    short = holding(1, 4, finished_at=at(18), gone=True)
    over = bill(30, [short._replace(gone=False)], [], run_over=True)
    closed = bill(31, [short], [], run_over=True, document=over.document)
    again = bill(32, [short], [], run_over=True, document=closed.document)
    assert not closed.document["pods"] and closed.held == again.held == 14 * SECOND


def folded_away(pods: int = 3) -> Bill:
    """A run is over that had more pods than entries are listed: bound at 4, ended at 20."""
    many = [holding(i, 4, finished_at=at(20)) for i in range(ENTRIES_LISTED + pods)]
    over = bill(30, many, [], run_over=True)
    return bill(31, [], [], run_over=True, document=over.document, observed_at=at(30))


def test_a_pod_that_returns_after_its_entries_were_folded_is_not_charged_twice() -> None:
    before = folded_away()
    assert not before.document["pods"] and not before.estimated
    back = bill(40, [holding(0, 4, finished_at=at(20))], [], run_over=True, document=before.document)
    assert back.held == before.held and back.estimated
    told = bill(40, [holding(0, 4, finished_at=at(20), gone=True)], [], run_over=True, document=before.document)
    assert told.held == before.held and told.estimated


def test_a_pod_that_is_newer_than_what_was_folded_is_billed_exactly() -> None:
    before = folded_away()
    for gone in (False, True):
        new = holding(9000, 25, finished_at=at(28), gone=gone)
        one = bill(40, [new], [], run_over=True, document=before.document)
        assert one.held == before.held + 3 * SECOND and not one.estimated
