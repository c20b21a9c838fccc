"""Estimates of the object store as rows of FOCUS: beside the bill, never in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from videotrain_api.billing.document import RunBill
from videotrain_api.billing.estimates import StorageEstimate
from videotrain_api.billing.focus import AMOUNTS, COLUMNS
from videotrain_api.billing.focus_estimates import estimate_rows
from videotrain_api.resource.prices import PriceList, StoragePrices

PRICES = PriceList(
    storage=StoragePrices(
        price_per_gibibyte_month="0.023", price_per_thousand_writes="0.005", price_per_thousand_reads="0.0004"
    )
)
MONTHS = [datetime(2026, month, 1, tzinfo=UTC) for month in (10, 11, 12)]


def bill(**changes: object) -> RunBill:
    estimates = [
        StorageEstimate(stage="train", kept="checkpoints", bytes=7, byte_seconds=10**19 + 7, writes=12_345, reads=333),
        StorageEstimate(stage="train", kept="samples", bytes=0, byte_seconds=0, reads=987_654_321),
    ]
    fields = {
        "run": "demo", "namespace": "ml", "uid": "u", "team": "video", "phase": "Running", "currency": "USD",
        "created_at": datetime(2026, 10, 20, 5, tzinfo=UTC), "as_of": datetime(2026, 12, 3, 7, 0, 1, tzinfo=UTC),
        "total": "0", "total_micros": 0, "estimated": False, "stages": [], "rows": [], "estimates": estimates,
        "gpu_microseconds_by_bucket": {}, "micros_by_bucket": {}, "waste_micros_by_cause": {},
    }  # fmt: skip
    return RunBill.model_validate(fields | changes, by_name=True)


def test_rows_sum_to_the_estimate_whatever_they_are_cut_at() -> None:
    one = bill()
    assert PRICES.storage is not None
    whole = sum(estimate.total_micros(PRICES.storage) for estimate in one.estimates)
    rows = list(estimate_rows([one], PRICES, "cluster-1", None, None))
    assert sum(Decimal(row["BilledCost"] or "") for row in rows) * 10**6 == whole > 0
    cut = datetime(2026, 11, 7, 13, 0, 5, tzinfo=UTC)
    parts = [estimate_rows([one], PRICES, "c", *times) for times in ((None, cut), (cut, None))]
    assert sum(Decimal(row["BilledCost"] or "") for part in parts for row in part) * 10**6 == whole
    assert {row["BillingPeriodStart"] for row in rows} == {f"2026-{at.month}-01T00:00:00Z" for at in MONTHS}
    # Of each month: storage and two kinds of requests of checkpoints, and reads of samples.
    assert len(rows) == 3 * 4


def test_a_row_says_that_it_is_an_estimate_and_has_nothing_of_a_split_charge() -> None:
    for row in estimate_rows([bill()], PRICES, "cluster-1", None, None):
        assert set(row) == set(COLUMNS)
        assert row["x_Estimated"] == "true" and row["ServiceCategory"] == "Storage"
        assert (row["ChargeDescription"] or "").startswith("Estimate: ")
        assert not any(row[name] for name in COLUMNS if name.startswith("Allocated")) and row["x_GoodputBucket"] is None
        tags = json.loads(row["Tags"] or "")
        assert tags["videotrain.dev/team"] == "video" and tags["videotrain.dev/stage"] == "train"
        price, quantity, cost = (Decimal(row[n] or "") for n in ("ListUnitPrice", "PricingQuantity", "ListCost"))
        assert float(price * quantity) == pytest.approx(float(cost), abs=2e-6)
        assert all(Decimal(row[name] or "") >= 0 for name in AMOUNTS)


@pytest.mark.parametrize(
    ("one", "prices"),
    [
        (bill(), PriceList()),
        (bill(currency="EUR"), PRICES),
        (bill(created_at=None), PRICES),
        (bill(estimates=[]), PRICES),
    ],
)
def test_without_prices_in_its_currency_a_run_has_no_row(one: RunBill, prices: PriceList) -> None:
    assert list(estimate_rows([one], prices, "cluster-1", None, None)) == []
