"""Why a stage cost other than planned: parts that sum to the difference to the micro, each blamed for what it did."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.cost.plan_against_real import PlannedStage, differences
from videotrain_api.money import MICROSECONDS_PER_HOUR, cost_micros

PLAN = PlannedStage(
    seconds_per_step=10.0,
    nodes=2,
    step_count=100,
    price=2_000_000,
    steps=8_000_000,
    start=400_000,
    checkpoint=100_000,
    failures=50_000,
)
amounts = st.integers(0, 10**12)


@given(
    plan=st.builds(
        PlannedStage,
        st.floats(0.001, 1000),
        st.integers(1, 512),
        st.integers(0, 10**6),
        st.integers(0, 10**8),
        amounts,
        amounts,
        amounts,
        amounts,
    ),
    held=st.integers(0, 10**15),
    causes=st.dictionaries(
        st.sampled_from(["productive", "start", "idle", "data", "checkpoint", "hang", "preemption", "unknown"]), amounts
    ),
    steps=st.integers(0, 2 * 10**6),
)
def test_the_parts_sum_to_the_difference_whatever_happened(
    plan: PlannedStage, held: int, causes: dict[str, int], steps: int
) -> None:
    spent = sum(causes.values())
    assert sum(differences(plan, spent, held, causes, steps).values()) == spent - plan.total


def as_planned(**more: int) -> dict[str, int]:
    return {"productive": 8_000_000, "start": 400_000, "checkpoint": 100_000, "hang": 50_000} | more


def told(causes: dict[str, int], price: int = PLAN.price, steps: int = 100) -> dict[str, int]:
    """Of so much money at a price."""
    spent = sum(causes.values())
    held = spent * MICROSECONDS_PER_HOUR // price
    assert cost_micros(held, price) == spent
    return differences(PLAN, spent, held, causes, steps)


def test_nothing_is_told_of_a_stage_that_went_as_planned() -> None:
    assert told(as_planned()) == {}


@pytest.mark.parametrize(
    ("causes", "why"),
    [
        (as_planned(productive=9_000_000), {"rate": 1_000_000}),
        (as_planned(start=900_000), {"start": 500_000}),
        (as_planned(checkpoint=0), {"checkpoint": -100_000}),
        (as_planned(data=70_000), {"data": 70_000}),
        (as_planned(idle=30_000), {"idle": 30_000}),
        (as_planned(preemption=250_000), {"failures": 250_000}),
    ],
)
def test_each_cause_is_blamed_for_its_own_money(causes: dict[str, int], why: dict[str, int]) -> None:
    assert told(causes) == why


def test_a_higher_price_is_not_blamed_on_anything_else() -> None:
    dear = {name: 2 * micros for name, micros in as_planned().items()}
    assert told(dear, price=2 * PLAN.price) == {"price": 8_550_000}


def test_a_stage_that_ended_early_saved_the_steps_that_it_did_not_make() -> None:
    assert told(as_planned(productive=2_000_000), steps=25) == {"steps": -6_000_000}
