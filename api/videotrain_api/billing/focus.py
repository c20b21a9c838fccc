"""Bills as rows of the FinOps Open Cost and Usage Specification (FOCUS) 1.3.

A row of a bill is a charge of the cluster for a node's time. It is split by what that bought: one FOCUS row for each
bucket, with the columns of split cost allocation. For every charge the allocated costs sum to the charge, to the micro,
and the ratios sum to 1. A charge that lies in two months is two, since a charge belongs to one billing period.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from videotrain_api.billing.document import BillRow, RunBill, within
from videotrain_api.money import format_micros, split
from videotrain_api.times import month_begin, next_month, rfc3339
from videotrain_api.vocabulary import DOMAIN, Bucket

METHOD: Final = f"{DOMAIN}time-by-bucket"
RATIO_PARTS: Final = 10**12
"""Ratios have twelve places, so that they sum to 1 exactly."""
COLUMNS: Final = (
    "AllocatedMethodDetails",
    "AllocatedMethodId",
    "AllocatedResourceId",
    "AllocatedResourceName",
    "AllocatedTags",
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
    "SkuId",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
    "x_Estimated",
    "x_GoodputBucket",
)
"""Of each row. Those of other makers' business are there and empty, as the specification wants."""

AMOUNTS: Final = (
    "BilledCost",
    "ConsumedQuantity",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "ListCost",
    "ListUnitPrice",
    "PricingQuantity",
)
"""Columns of decimals."""


def focus_rows(rows: Iterable[tuple[RunBill, BillRow]], cluster: str) -> Iterator[dict[str, str | None]]:
    """Rows by column name; None for an empty cell.

    Args:
        rows: of bills, see `sums.rows_within`.
        cluster: identity of the cluster, which stands for the billing account.
    """
    for bill, row in rows:
        for begin, end in months_between(row.from_, row.to):
            part = within(row, begin, end)
            if part is not None:
                yield from _charge(bill, part, begin, end, cluster)


def months_between(first: datetime, last: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The calendar months, in UTC, in which a time lies."""
    begin = month_begin(first)
    while begin < last:
        end = next_month(begin)
        yield begin, end
        begin = end


def _charge(
    bill: RunBill, row: BillRow, begin: datetime, end: datetime, cluster: str
) -> Iterator[dict[str, str | None]]:
    buckets = [b.value for b in Bucket if row.micros.get(b.value) or row.gpu_microseconds.get(b.value)]
    weights = {bucket: row.gpu_microseconds.get(bucket, 0) for bucket in buckets}
    if not any(weights.values()):  # a node without GPUs
        weights = {bucket: row.micros[bucket] for bucket in buckets}
    if not any(weights.values()):
        return
    ratios = split(RATIO_PARTS, weights)
    held = dict(row.gpu_microseconds) or split(row.node_microseconds, weights)
    for bucket in buckets:
        yield _cells(bill, row, bucket, (ratios[bucket], held.get(bucket, 0)), (begin, end), cluster)


def _cells(
    bill: RunBill, row: BillRow, bucket: str, share: tuple[int, int], month: tuple[datetime, datetime], cluster: str
) -> dict[str, str | None]:
    by_gpu = bool(row.gpu_microseconds)
    amount, unit = format_micros(row.micros.get(bucket, 0)), "GPU Hours" if by_gpu else "Hours"
    ratio, hours = _decimal(share[0], 12), _decimal(share[1] * 10**5 // 36, 13)
    price = row.price.partition(" ")[0] or None
    origin = row.node or f"{cluster}/nodes"
    tags = {f"{DOMAIN}{name}": value for name, value in _tags(bill, row).items() if value}
    method = {"Elements": [{"AllocatedRatio": ratio, "UsageUnit": unit, "UsageQuantity": hours}], "x_Bucket": bucket}
    cells: dict[str, str | None] = dict.fromkeys(COLUMNS)
    return (
        cells
        | account_cells(bill, cluster, month)
        | {
            "AllocatedMethodDetails": _json(method),
            "AllocatedMethodId": METHOD,
            "AllocatedResourceId": "/".join((bill.uid, row.stage, bucket)),
            "AllocatedResourceName": "/".join((bill.namespace, bill.run, row.stage, bucket)),
            "AllocatedTags": _json(tags | {f"{DOMAIN}bucket": bucket}),
            "BilledCost": amount,
            "ChargeCategory": "Usage",
            "ChargeDescription": f"{bucket} time of {row.pod or 'pods'} of {bill.namespace}/{bill.run}",
            "ChargeFrequency": "Usage-Based",
            "ChargePeriodEnd": rfc3339(row.to, "seconds"),
            "ChargePeriodStart": rfc3339(row.from_, "seconds"),
            "ConsumedQuantity": hours,
            "ConsumedUnit": unit,
            "ContractedCost": amount,
            "ContractedUnitPrice": price,
            "EffectiveCost": amount,
            "ListCost": amount,
            "ListUnitPrice": price,
            "PricingCategory": "Standard",
            "PricingQuantity": hours,
            "PricingUnit": unit,
            "ResourceId": origin,
            "ResourceName": origin,
            "ResourceType": "Node",
            "ServiceCategory": "Compute",
            "ServiceName": "Worker nodes",
            "ServiceSubcategory": "Containers",
            "SkuId": f"{row.gpus} GPUs",
            "SkuPriceId": f"{row.gpus} GPUs at {row.price or 'several prices'}",
            "Tags": _json(tags),
            "x_Estimated": str(row.estimated).lower(),
            "x_GoodputBucket": bucket,
        }
    )


def account_cells(bill: RunBill, cluster: str, month: tuple[datetime, datetime]) -> dict[str, str | None]:
    """Who is billed by whom, and for which month."""
    return {
        "BillingAccountId": cluster,
        "BillingAccountName": cluster,
        "BillingAccountType": "Cluster",
        "BillingCurrency": bill.currency,
        "BillingPeriodEnd": rfc3339(month[1], "seconds"),
        "BillingPeriodStart": rfc3339(month[0], "seconds"),
        "HostProviderName": cluster,
        "InvoiceIssuerName": cluster,
        "ProviderName": cluster,
        "PublisherName": cluster,
        "ServiceProviderName": cluster,
        "SubAccountId": bill.namespace,
        "SubAccountName": bill.namespace,
        "SubAccountType": "Namespace",
    }


def tags_cell(bill: RunBill, **more: str) -> str:
    """The tags of a run, and more of them."""
    return _json({f"{DOMAIN}{name}": value for name, value in (_run_tags(bill) | more).items() if value})


def _run_tags(bill: RunBill) -> dict[str, str]:
    return {"run": bill.run, "run-uid": bill.uid, "team": bill.team, "cost-center": bill.cost_center}


def _tags(bill: RunBill, row: BillRow) -> dict[str, Any]:
    return _run_tags(bill) | {
        "stage": row.stage,
        "pod": row.pod,
        "pod-uid": row.pod_uid,
        "generation": "" if row.generation is None else str(row.generation),
    }


def _decimal(amount: int, places: int) -> str:
    """So many parts of 10**places as a decimal string without trailing zeros."""
    whole, rest = divmod(amount, 10**places)
    digits = f"{rest:0{places}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
