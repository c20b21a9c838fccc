"""Reading a ledger that somebody else may have written.

A ledger of which any part cannot be read is no ledger: a bill from the rest would look exact and be wrong. The totals
in the status take its place, as if it had been deleted, and the bill counts as estimated from then on.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from videotrain_api.resource.stored_status import implausible
from videotrain_api.schema import ApiModel
from videotrain_operator.accounting.money import parse_price


class _Part(ApiModel):
    """What this version of the accounting needs; fields of other versions are none of its business."""

    model_config = ApiModel.model_config | {"extra": "ignore"}


class _Pod(_Part):
    pod: str
    gpus: int
    price: str
    created_at: datetime
    bound_at: datetime
    closed_through: int
    closed_until: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class _Amounts(_Part):
    gpu_microseconds: dict[str, int]
    micros: dict[str, int]


class _Entry(_Amounts):
    uid: str
    generation: int
    gpus: int
    from_: datetime
    to: datetime
    estimated: bool


class _Folded(_Amounts):
    entries: int
    estimated: bool
    until: datetime | None = None


class _Ledger(_Part):
    pods: dict[str, _Pod]
    entries: list[_Entry]
    folded: _Folded


def readable(document: Any) -> bool:
    """Whether a stored ledger can be settled.

    Args:
        document: what was stored, as JSON data.
    """
    try:
        ledger = _Ledger.from_wire(document)
        for record in ledger.pods.values():
            parse_price(record.price)
    except ValueError:
        return False
    return not any(implausible(ledger))
