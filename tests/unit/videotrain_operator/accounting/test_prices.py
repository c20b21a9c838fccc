"""Prices of the cluster's list: which holds where and when, and bills that are cut where they change."""

from __future__ import annotations

import json
import random
from datetime import datetime
from fractions import Fraction
from typing import Any

import pytest
from support.ledgers import SECOND, bill, generation, holding
from support.planner_builders import at, progress

from videotrain_api.money import parse_micros
from videotrain_api.resource.prices import PriceList, capacity_of
from videotrain_api.schema import ManifestError
from videotrain_operator.accounting.attribution import microseconds
from videotrain_operator.accounting.money import price_at, price_schedule, schedule_text, with_later_prices

H200 = {"nvidia.com/gpu.product": "NVIDIA-H200"}
LIST = {
    "prices": [
        {"nodeLabels": H200, "capacity": "spot", "pricePerGpuHour": "1.80"},
        {"nodeLabels": H200, "pricePerGpuHour": "3.60", "validTo": "2026-01-01T12:01:00Z"},
        {"nodeLabels": H200, "pricePerGpuHour": "7.20", "validFrom": "2026-01-01T12:01:00Z"},
        {"nodeLabels": {"lab": "own"}, "runsMayOverride": True},
        {"pricePerNodeHour": "0.36"},
    ]
}


def prices(
    labels: dict[str, str], *, gpus: bool = True, own: str = "9 USD", bound: float = 0
) -> list[tuple[datetime, str]]:
    return PriceList.from_wire(LIST).of_pod(labels, own, gpus=gpus, bound_at=at(bound))


@pytest.mark.parametrize(
    ("labels", "gpus", "own", "want"),
    [
        (H200 | {"karpenter.sh/capacity-type": "spot"}, True, "9 USD", [(0, "1.80 USD")]),
        (H200 | {"eks.amazonaws.com/capacityType": "SPOT"}, True, "9 USD", [(0, "1.80 USD")]),
        (H200, True, "9 USD", [(0, "3.60 USD"), (60, "7.20 USD")]),
        (H200, True, "9 EUR", []),
        ({"lab": "own"}, True, "9 USD", [(0, "9 USD")]),
        ({}, True, "9 USD", []),
        ({}, False, "9 USD", [(0, "0.36 USD")]),
    ],
)
def test_the_first_price_that_fits_and_is_valid_holds(labels: Any, gpus: bool, own: str, want: Any) -> None:
    assert prices(labels, gpus=gpus, own=own) == [(at(second), price) for second, price in want]


def test_capacity_is_told_by_the_clouds_labels() -> None:
    assert capacity_of({}) == capacity_of({"karpenter.sh/capacity-type": "on-demand"}) == "on-demand"
    assert capacity_of({"cloud.google.com/gke-spot": "true"}) == "spot"
    assert capacity_of({"karpenter.sh/capacity-type": "reserved"}) == "reserved"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"pricePerGpuHour": "-1"},
        {"pricePerGpuHour": "1", "validFrom": "2026-02-01T00:00:00Z", "validTo": "2026-01-01T00:00:00Z"},
        {"pricePerGpuHour": "1", "capacity": "cheap"},
        {"pricePerGpuHour": "1", "validFrom": "2026-02-01T00:00:00"},
    ],
)
def test_a_wrong_price_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ManifestError):
        PriceList.from_wire({"prices": [wrong]})


def test_a_schedule_is_read_as_it_is_written_and_only_its_future_changes() -> None:
    text = schedule_text([(5, "1 USD"), (10, "2 USD"), (30, "3 USD")])
    assert text == "1 USD;10=2 USD;30=3 USD" and price_schedule(text)[1:] == ((10, "2 USD"), (30, "3 USD"))
    assert [price_at(text, moment) for moment in (0, 9, 10, 29, 30)] == ["1 USD", "1 USD", "2 USD", "2 USD", "3 USD"]
    assert with_later_prices(text, "1 USD;10=2 USD;20=4 USD", 15) == "1 USD;10=2 USD;20=4 USD"
    assert with_later_prices(text, "7 USD", 15) == "1 USD;10=2 USD;15=7 USD"
    assert with_later_prices(text, text, 15) == text
    for wrong in ("1 USD;x=2 USD", "1 USD;20=2 USD;10=3 USD", "1 USD;5=free", ""):
        with pytest.raises(ValueError):
            price_schedule(wrong)


def test_entries_are_cut_where_the_price_changes() -> None:
    listed = schedule_text([(microseconds(at(second)), price) for second, price in ((0, "3.60 USD"), (60, "7.20 USD"))])
    one = bill(200, [holding(0, 0, listed=listed, finished_at=at(100))], [], run_over=True)
    found = [(entry["price"], sum(entry["micros"].values())) for entry in one.document["entries"]]
    assert found == [("3.60 USD", 60_000), ("7.20 USD", 80_000)]
    assert one.total == 140_000 and one.held == 100 * SECOND


def integral(listed: list[tuple[float, int]], bound: float, end: float) -> int:
    """Micros by walking through the milliseconds."""
    total = Fraction(0)
    for millisecond in range(round(bound * 1000), round(end * 1000)):
        price = next(price for since, price in reversed(listed) if since * 1000 <= millisecond)
        total += Fraction(price, 3_600_000)
    return round(total)


@pytest.mark.parametrize("seed", range(20))
def test_prices_that_change_while_operators_come_and_go_cost_what_they_were(seed: int) -> None:
    dice = random.Random(seed)
    changes = sorted(dice.sample(range(5, 90), dice.randint(0, 4)))
    listed = [(0.0, 3_600_000), *((float(second), dice.choice([1_800_000, 7_200_000, 36_000])) for second in changes)]
    ends = [dice.randint(20, 100) for _ in range(3)]
    document, last = None, None
    world = generation(1, 3, [0, 1, 2], progress=progress(1, 30, started_at=at(6), last_step_at=at(90)))
    for now in [*sorted(dice.sample(range(2, 100), 6)), 120]:
        # The list says a change from when it is made on; the operator that looks next has the newer list.
        known = [(since, price) for since, price in listed if since <= now]
        text = schedule_text([(microseconds(at(since)), f"{price / 1e6:.6f} USD") for since, price in known])
        pods = [
            holding(index, index, listed=text, finished_at=at(end) if end <= now else None)
            for index, end in enumerate(ends)
            if index < now
        ]
        worlds = [world] if now >= 3 else []
        one = bill(now, pods, worlds, document=document, observed_at=last, run_over=now == 120)
        document, last = json.loads(json.dumps(one.document)), at(now)
    want = sum(integral(listed, index, end) for index, end in enumerate(ends))
    assert abs(one.total - want) <= len(one.document["entries"])  # each is rounded to the micro
    assert not one.estimated
    assert {parse_micros(entry["price"].partition(" ")[0]) for entry in one.document["entries"]} <= {
        p for _, p in listed
    }
