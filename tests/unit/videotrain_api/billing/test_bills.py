"""Bills of runs: rows sum to the total at any time, parts of them to the whole, and what is stored is what was."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from support.bills import bill_in, ledger_in
from support.planner_lives import cluster_of, pass_seconds

from videotrain_api.billing.document import CHECKSUM, BillError, RunBill, bill_of, read_bill, sealed, within
from videotrain_api.billing.focus import focus_rows
from videotrain_api.billing.sums import CHOICES, By, rows_within, summed
from videotrain_api.money import parse_micros
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import LABEL_TEAM


@pytest.fixture(scope="module")
def bills() -> list[RunBill]:
    return asyncio.run(bills_of_a_life())


async def bills_of_a_life() -> list[RunBill]:
    """While it starts, trains, loses a node, is back, and when it is over."""
    cluster, found = cluster_of(machines=3, steps=40), []
    for second in range(240):
        status = await pass_seconds(cluster, 1)
        if second == 30:
            cluster.lose_node("node-0")
        if second % 9 == 0 and status.cost is not None:
            found.append(bill_in(cluster, **{LABEL_TEAM: "vision"}))
        if status.phase == "Succeeded":
            break
    await pass_seconds(cluster, 5)
    return [*found, bill_in(cluster, **{LABEL_TEAM: "vision"})]


def test_rows_sum_to_the_bill_at_any_time_and_the_last_one_is_closed(bills: list[RunBill]) -> None:
    for bill in bills:
        for totals, field in ((bill.micros_by_bucket, "micros"), (bill.gpu_microseconds_by_bucket, "gpu_microseconds")):
            for bucket, amount in totals.items():
                assert sum(getattr(row, field).get(bucket, 0) for row in bill.rows) == amount, (field, bucket)
        for cause, micros in bill.waste_micros_by_cause.items():
            assert sum(row.waste.get(cause, 0) for row in bill.rows) == micros
        for stage in bill.stages:
            assert sum(row.total for row in bill.rows if row.stage == stage.name) == stage.total_micros
    assert [bill.closed for bill in bills] == [False] * (len(bills) - 1) + [True]
    assert len(bills) > 5 and bills[-1].total_micros > bills[0].total_micros
    assert {end.cause for end in bills[-1].ends} >= {"infrastructure", "completed"}
    lost = next(end for end in bills[-1].ends if end.cause == "infrastructure")
    assert lost.wasted_micros == bills[-1].waste_micros_by_cause["infrastructure"] and "node-0" in lost.message
    assert {row.node for row in bills[-1].rows} >= {"node-0", "node-1", "node-2"}


def test_parts_of_neighbouring_times_sum_to_the_whole(bills: list[RunBill]) -> None:
    bill = bills[-1]
    for row in bill.rows:
        marks = [row.from_ + (row.to - row.from_) * n / 7 for n in range(8)]
        parts = [within(row, begin, end) for begin, end in pairwise(marks)]
        assert sum(part.total for part in parts if part) == row.total
        assert sum(sum(part.gpu_microseconds.values()) for part in parts if part) == sum(row.gpu_microseconds.values())
        for part in filter(None, parts):
            assert sum(part.waste.values()) == part.total - part.micros.get("productive", 0)
        assert within(row, row.to, None) is None and within(row, None, row.from_) is None


@pytest.mark.parametrize("by", CHOICES)
def test_lines_sum_to_what_was_spent(by: By, bills: list[RunBill]) -> None:
    bill = bills[-1]
    other = bill.model_copy(update={"uid": "another", "team": "", "currency": "EUR"})
    lines = summed(rows_within([bill, other], None, None), by)
    for currency in ("USD", "EUR"):
        assert sum(line.micros for line in lines if line.currency == currency) == bill.total_micros
    if by == "team":
        assert {(line.currency, line.name) for line in lines} == {("USD", "vision"), ("EUR", "")}
    middle = bill.rows[0].from_ + timedelta(seconds=20)
    halves = [summed(rows_within([bill], *cut), by) for cut in ((None, middle), (middle, None))]
    assert sum(line.micros for half in halves for line in half) == bill.total_micros


def test_what_is_stored_is_what_was_and_a_change_is_noticed(bills: list[RunBill]) -> None:
    bill = bills[-1]
    document: dict[str, Any] = json.loads(json.dumps(sealed(bill)))
    assert read_bill(document) == bill
    for changed in ({"totalMicros": 1}, {"team": "others"}, {CHECKSUM: "0" * 64}):
        with pytest.raises(BillError, match="was changed"):
            read_bill(document | changed)
    for none in ({}, [], {"run": "demo"}):
        with pytest.raises(BillError):
            read_bill(none)


async def test_a_bill_without_a_ledger_has_the_totals_and_is_not_closed() -> None:
    cluster = cluster_of(machines=2, steps=10)
    await pass_seconds(cluster, 25)
    whole = bill_in(cluster)
    bill = bill_of(cluster.run, None)
    assert bill is not None and not bill.closed
    assert sum(row.total for row in bill.rows) == bill.total_micros == whole.total_micros > 0
    assert bill_of({"metadata": {"name": "demo", "uid": "u"}, "status": {}}, None) is None


async def test_money_of_a_run_that_was_suspended_before_it_started_is_in_a_row() -> None:
    cluster = cluster_of(machines=2, steps=10)
    status = await pass_seconds(cluster, 25)
    unstarted = {name: value for name, value in status.to_wire().items() if name not in ("startTime", "observedAt")}
    bill = bill_of(cluster.run | {"status": unstarted}, None)
    assert bill is not None and sum(row.total for row in bill.rows) == bill.total_micros > 0
    charges = focus_rows(rows_within([bill], None, None), "cluster-1")
    assert sum(parse_micros(row["BilledCost"] or "0") for row in charges) == bill.total_micros


async def test_all_that_was_counted_is_in_the_time_in_which_it_was_held_however_long_ago_pods_were_looked_at() -> None:
    cluster = cluster_of(machines=3, steps=200)
    await pass_seconds(cluster, 30)
    cluster.lose_node("node-0")
    status = await pass_seconds(cluster, 30)
    assert status.cost is not None and status.cost.counted_until is not None
    ledger = ledger_in(cluster)
    assert ledger is not None and ledger["entries"]
    # On an idle watch: before the newest time that is closed.
    earlier = min(entry["to"] for entry in ledger["entries"])
    looked_at = rfc3339(status.cost.counted_until - timedelta(seconds=59), "seconds")
    run = cluster.run | {"status": status.to_wire() | {"observedAt": min(earlier, looked_at)}}
    bill = bill_of(run, ledger)
    assert bill is not None and bill.as_of == max(row.to for row in bill.rows) == status.cost.counted_until
    charges = focus_rows(rows_within([bill], None, None), "cluster-1")
    assert sum(parse_micros(row["BilledCost"] or "0") for row in charges) == bill.total_micros
    halves = [(None, bill.as_of - timedelta(seconds=5)), (bill.as_of - timedelta(seconds=5), None)]
    parts = [sum(row.total for _, row in rows_within([bill], *half)) for half in halves]
    assert sum(parts) == bill.total_micros and all(parts)
