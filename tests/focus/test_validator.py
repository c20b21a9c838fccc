"""FOCUS rows before focus-validator, which knows the rules of FOCUS 1.0. Those of 1.3 are in the unit tests."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from support.bills import bill_in
from support.planner_lives import cluster_of, pass_seconds

from videotrain.bills.tables import as_csv
from videotrain_api.billing.focus import COLUMNS, focus_rows
from videotrain_api.billing.focus_estimates import estimate_rows
from videotrain_api.billing.sums import rows_within
from videotrain_api.resource.prices import PriceList, StoragePrices
from videotrain_api.vocabulary import LABEL_TEAM

OLD_NAMES = {
    "InvoiceIssuer": "InvoiceIssuerName",
    "Provider": "ProviderName",
    "Publisher": "PublisherName",
    "ResourceID": "ResourceId",
    "ChargeType": "ChargeCategory",
}
"""Columns that the validator's rules of 1.0 still ask for by the names of the preview."""

PRICES = PriceList(storage=StoragePrices(price_per_gibibyte_month="0.023", price_per_thousand_writes="0.005"))
Rows = list[dict[str, str | None]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    async def life() -> Rows:
        cluster = cluster_of(machines=3, steps=20)
        await pass_seconds(cluster, 20)
        cluster.lose_node("node-0")
        await pass_seconds(cluster, 60)
        bill = bill_in(cluster, **{LABEL_TEAM: "vision"})
        assert bill.closed and bill.estimates
        exact = focus_rows(rows_within([bill], None, None), "cluster-1")
        return [*exact, *estimate_rows([bill], PRICES, "cluster-1", None, None)]

    return asyncio.run(life())


def verdict(rows: Rows, file: Path) -> str:
    renamed = [row | {old: row[new] for old, new in OLD_NAMES.items()} for row in rows]
    file.write_text(as_csv((*COLUMNS, *OLD_NAMES), renamed))
    command = [sys.executable, "-m", "focus_validator.main", "--data-file", str(file), "--validate-version", "1.0"]
    # It reads its list of currencies by a path relative to its distribution.
    package = importlib.util.find_spec("focus_validator")
    assert package is not None and package.origin is not None
    folder = Path(package.origin).parents[1]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stdout


def test_the_validator_accepts_a_bill(rows: Rows, tmp_path: Path) -> None:
    assert "Validation succeeded" in verdict(rows, tmp_path / "rows.csv")


@pytest.mark.parametrize(("column", "value"), [("BillingCurrency", "dollars"), ("ChargePeriodStart", "today")])
def test_it_refuses_what_is_wrong(rows: Rows, tmp_path: Path, column: str, value: str) -> None:
    assert f"{column}_" in verdict([row | {column: value} for row in rows], tmp_path / "rows.csv")
