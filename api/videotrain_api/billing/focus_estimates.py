"""FOCUS rows of what a run keeps in an object store and asks of it: estimates, beside the rows of its bill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final

from videotrain_api.billing.document import RunBill
from videotrain_api.billing.estimates import KINDS, Kind, StorageEstimate, listed
from videotrain_api.billing.focus import COLUMNS, account_cells, months_between, tags_cell
from videotrain_api.money import format_micros
from videotrain_api.resource.prices import PriceList, StoragePrices
from videotrain_api.times import rfc3339

_UNITS: Final[dict[Kind, str]] = {"storage": "GiB-Months", "writes": "1000 Requests", "reads": "1000 Requests"}
_WORDS: Final[dict[Kind, str]] = {"storage": "storage", "writes": "requests that write", "reads": "requests that read"}
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True)
class _Period:
    """A part of the time of a bill, within one calendar month."""

    begin: datetime
    end: datetime
    month: tuple[datetime, datetime]
    shares: tuple[Fraction, Fraction]
    """Of the bill's time before it, and with it."""


def estimate_rows(
    bills: Iterable[RunBill], prices: PriceList, cluster: str, since: datetime | None, until: datetime | None
) -> Iterator[dict[str, str | None]]:
    """Rows by column name, told apart by `x_Estimated` and by ServiceCategory Storage; None for an empty cell.

    They have no columns of split cost allocation and no bucket. Amounts are spread evenly over the time from the run's
    creation to its newest look. Runs in another currency than the price list's have none.

    Args:
        bills: of runs.
        prices: of the cluster; without prices of storage there is no row.
        cluster: identity of the cluster, which stands for the billing account.
        since: only what is from then on.
        until: only what is before then.
    """
    if prices.storage is None:
        return
    for bill in bills:
        if bill.currency == prices.currency:
            for period in _periods(bill, since, until):
                for estimate in bill.estimates:
                    yield from _rows(bill, estimate, prices.storage, cluster, period)


def _periods(bill: RunBill, since: datetime | None, until: datetime | None) -> Iterator[_Period]:
    if bill.created_at is None or bill.as_of is None or bill.as_of <= bill.created_at:
        return
    first, last = bill.created_at, bill.as_of

    def share(at: datetime) -> Fraction:
        return Fraction((at - first) // _MICROSECOND, (last - first) // _MICROSECOND)

    for month in months_between(first, last):
        begin, end = max(month[0], first, since or first), min(month[1], last, until or last)
        if begin < end:
            yield _Period(begin, end, month, (share(begin), share(end)))


def _rows(
    bill: RunBill, estimate: StorageEstimate, prices: StoragePrices, cluster: str, period: _Period
) -> Iterator[dict[str, str | None]]:
    before, after = period.shares
    for kind in KINDS:
        amount, micros = estimate.amount(kind), estimate.micros(kind, prices)
        if amount:
            # Parts of neighbouring periods sum to the whole, to the micro.
            cost = int(micros * after) - int(micros * before)
            cells = _charge(kind, amount * (after - before), cost, listed(kind, prices))
            yield (
                dict.fromkeys(COLUMNS)
                | account_cells(bill, cluster, period.month)
                | cells
                | {
                    "ChargeDescription": f"Estimate: {_WORDS[kind]} for {estimate.kept} of {_place(bill, estimate)}",
                    "ChargePeriodEnd": rfc3339(period.end, "seconds"),
                    "ChargePeriodStart": rfc3339(period.begin, "seconds"),
                    "ResourceId": _place(bill, estimate),
                    "ResourceName": _place(bill, estimate),
                    "Tags": tags_cell(bill, stage=estimate.stage),
                }
            )


def _place(bill: RunBill, estimate: StorageEstimate) -> str:
    return "/".join((bill.namespace, bill.run, estimate.stage, estimate.kept))


def _charge(kind: Kind, amount: Fraction, micros: int, price: str) -> dict[str, str | None]:
    quantity, cost = f"{float(amount):.9f}", format_micros(micros)
    return {
        "BilledCost": cost,
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ConsumedQuantity": quantity,
        "ConsumedUnit": _UNITS[kind],
        "ContractedCost": cost,
        "ContractedUnitPrice": price,
        "EffectiveCost": cost,
        "ListCost": cost,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": _UNITS[kind],
        "ResourceType": "Object store",
        "ServiceCategory": "Storage",
        "ServiceName": "Object store",
        "ServiceSubcategory": "Object Storage",
        "SkuId": f"Object store {kind}",
        "SkuPriceId": f"Object store {kind} at {price}",
        "x_Estimated": "true",
    }
