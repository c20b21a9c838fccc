"""The rules of FOCUS 1.3: those of each column, and those of split cost allocation, written from the specification."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

import pytest
from support.bills import bill_in
from support.planner_lives import cluster_of, pass_seconds

from videotrain_api.billing.document import BillRow, RunBill
from videotrain_api.billing.focus import AMOUNTS, COLUMNS, focus_rows
from videotrain_api.billing.sums import rows_within
from videotrain_api.money import parse_micros
from videotrain_api.vocabulary import LABEL_TEAM

NEVER_NULL = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
)
MAY_BE_NULL = (
    "AvailabilityZone",
    "ChargeClass",  # only of corrections
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "RegionId",
    "RegionName",
)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture(scope="module")
def bill() -> RunBill:
    async def life() -> RunBill:
        cluster = cluster_of(machines=3, steps=30)
        await pass_seconds(cluster, 30)
        cluster.lose_node("node-0")
        for _ in range(200):
            if (await pass_seconds(cluster, 1)).phase == "Succeeded":
                break
        await pass_seconds(cluster, 5)
        return bill_in(cluster, **{LABEL_TEAM: "vision"})

    return asyncio.run(life())


def rows_of(*bills: RunBill) -> list[dict[str, Any]]:
    return list(focus_rows(rows_within(bills, None, None), "cluster-1"))


def micros(row: dict[str, Any]) -> int:
    return parse_micros(row["BilledCost"])


def test_every_row_has_every_column_in_its_form(bill: RunBill) -> None:
    rows = rows_of(bill)
    assert rows
    for row in rows:
        assert tuple(row) == COLUMNS
        assert [name for name in NEVER_NULL if row[name] is None] == []
        assert {name for name, value in row.items() if value is None} <= {*MAY_BE_NULL}
        for name in AMOUNTS:
            assert re.fullmatch(r"\d+(\.\d+)?", row[name]), (name, row[name])
        for name in (name for name in COLUMNS if "Period" in name):
            assert TIME.fullmatch(row[name]), row[name]
        assert (
            row["BillingPeriodStart"] <= row["ChargePeriodStart"] <= row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        )
        assert re.fullmatch("[A-Z]{3}", row["BillingCurrency"])
        assert row["ChargeCategory"] == "Usage" and row["ChargeFrequency"] == "Usage-Based"
        for name in ("Tags", "AllocatedTags", "AllocatedMethodDetails"):
            assert isinstance(json.loads(row[name]), dict)
        assert json.loads(row["AllocatedTags"])["videotrain.dev/team"] == "vision"


def test_allocated_costs_sum_to_the_charge_and_ratios_to_one(bill: RunBill) -> None:
    rows = rows_of(bill)
    assert sum(map(micros, rows)) == bill.total_micros

    def charge(row: dict[str, Any]) -> tuple[str, ...]:
        return row["ResourceId"], row["Tags"], row["ChargePeriodStart"], row["ChargePeriodEnd"]

    charges = [(key, list(found)) for key, found in groupby(rows, key=charge)]
    origins = [row for row in bill.rows if row.total]
    assert len(charges) == len(origins) and max(len(found) for _, found in charges) > 2
    for (key, found), origin in zip(charges, origins, strict=True):
        details = [json.loads(row["AllocatedMethodDetails"]) for row in found]
        ratios = [Decimal(element["AllocatedRatio"]) for one in details for element in one["Elements"]]
        assert sum(ratios) == 1 and all(0 <= ratio <= 1 for ratio in ratios)
        assert sum(map(micros, found)) == origin.total, key
        assert len({row["AllocatedResourceId"] for row in found}) == len(found)
        for row, ratio in zip(found, ratios, strict=True):
            assert abs(micros(row) - ratio * origin.total) <= 1  # rounded to the micro
        hours = sum(Decimal(row["PricingQuantity"]) for row in found)
        assert abs(hours * 3_600_000_000 - sum(origin.gpu_microseconds.values())) < Decimal("0.01")


def test_a_charge_in_two_months_is_two_that_sum_to_it(bill: RunBill) -> None:
    begin = datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC)
    row = BillRow(
        from_=begin,
        to=begin + timedelta(seconds=33),
        node="n",
        gpus=8,
        price="2.50 USD",
        node_microseconds=33_000_000,
        gpu_microseconds={"productive": 8 * 30_000_000, "lost": 8 * 3_000_000},
        micros={"productive": 166_667, "lost": 16_666},
        waste={"hang": 16_666},
    )
    rows = rows_of(bill.model_copy(update={"rows": [row]}))
    assert [r["BillingPeriodStart"][:7] for r in rows] == ["2026-11", "2026-11", "2026-12", "2026-12"]
    assert rows[1]["ChargePeriodEnd"] == rows[2]["ChargePeriodStart"] == "2026-12-01T00:00:00Z"
    assert sum(map(micros, rows)) == 183_333


def test_a_node_without_gpus_is_told_by_its_hours(bill: RunBill) -> None:
    begin = datetime(2026, 11, 30, 12, tzinfo=UTC)
    row = BillRow(
        from_=begin,
        to=begin + timedelta(hours=1),
        price="2.40 USD",
        node_microseconds=3_600_000_000,
        micros={"productive": 1_800_000, "starting": 600_000},
        waste={"start": 600_000},
    )
    rows = rows_of(bill.model_copy(update={"rows": [row]}))
    assert {r["PricingUnit"] for r in rows} == {"Hours"}
    assert sorted(r["PricingQuantity"] for r in rows) == ["0.25", "0.75"]
