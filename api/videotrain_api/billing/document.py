"""The bill of one run, from its object and its ledger, as it is kept after the run is gone.

Rows are what the ledger lists: closed windows of pods, groups of older ones, and what is in the total and in no row.
The micros of all rows sum to the total, always.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import Field

from videotrain_api.billing.estimates import StorageEstimate
from videotrain_api.money import split
from videotrain_api.resource.status import CostStatus, GenerationStatus, MonthCost, RunStatus, StageCost
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import ApiModel, Json, ManifestError
from videotrain_api.storage.seals import content
from videotrain_api.vocabulary import LABEL_COST_CENTER, LABEL_TEAM, Bucket, Condition

BILL_VERSION: Final = 1
CHECKSUM: Final = "sha256"
"""Field of a stored bill: SHA-256 of the `content` of the others, 64 hex digits."""
_FINISHED: Final = (Condition.COMPLETE, Condition.FAILED)
_MICROSECOND: Final = timedelta(microseconds=1)


class BillError(ValueError):
    """A stored bill is none, or was changed."""


class BillRow(ApiModel):
    """Time of a node, or of several that are told together, and what it bought. Times are UTC."""

    from_: datetime
    to: datetime
    pod: str = ""
    """Empty for several, as the next two."""
    pod_uid: str = ""
    node: str = ""
    stage: str = ""
    """Empty if it is not known."""
    generation: int | None = None
    """Whose roster was the newest; unset for several."""
    gpus: int = 0
    """Of the node; 0 for a node without, or for several kinds."""
    price: str = ""
    """`PRICE CURRENCY` of an hour of a GPU, or of a node without; empty for several prices."""
    node_microseconds: int
    gpu_microseconds: dict[str, int] = Field(default_factory=dict)
    """By bucket; nothing for a node without GPUs."""
    micros: dict[str, int] = Field(default_factory=dict)
    """By bucket."""
    waste: dict[str, int] = Field(default_factory=dict)
    """Micros of all buckets but the productive one by cause."""
    estimated: bool = False
    source: str = ""
    """Of the samples that its stage trained on, once it was shared out by them; not in a stored bill."""

    @property
    def total(self) -> int:
        """Micros of all buckets."""
        return sum(self.micros.values())


class BilledEnd(ApiModel):
    """What the end of a generation cost, and what it was."""

    generation: int
    stage: str
    cause: str
    """See GenerationStatus.endCause."""
    reason: str = ""
    """See GenerationStatus.endReason."""
    message: str = ""
    """For people: the node, pod or edit."""
    at: datetime | None = None
    total_micros: int
    """What the generation cost."""
    wasted_micros: int
    """What its end cost."""


class RunBill(ApiModel):
    """All that a run cost."""

    version: int = BILL_VERSION
    run: str
    namespace: str
    uid: str
    team: str = ""
    """Label videotrain.dev/team of the run."""
    cost_center: str = ""
    """Label videotrain.dev/cost-center of the run."""
    phase: str
    created_at: datetime | None = None
    completed_at: datetime | None = None
    as_of: datetime | None = None
    """The bill goes so far: what nodes that were held then cost is in it."""
    closed: bool = False
    """Nothing of it can change any more."""
    generation: int = 0
    """Newest generation of the run."""
    currency: str
    total: str
    """Decimal string, for people."""
    total_micros: int
    estimated: bool
    gpu_microseconds_by_bucket: dict[str, int]
    micros_by_bucket: dict[str, int]
    waste_micros_by_cause: dict[str, int]
    months: list[MonthCost] = Field(default_factory=list)
    stages: list[StageCost]
    ends: list[BilledEnd] = Field(default_factory=list)
    """Of the newest generations that ended."""
    estimates: list[StorageEstimate] = Field(default_factory=list)
    """What it keeps in its object store and asks of it, counted and never measured; in no total and in no row."""
    rows: list[BillRow]


def sealed(bill: RunBill) -> Json:
    """The bill as it is stored, with its checksum."""
    document = bill.to_wire()
    return document | {CHECKSUM: hashlib.sha256(content(document)).hexdigest()}


def read_bill(document: Any) -> RunBill:
    """A stored bill.

    Raises:
        BillError: it is none, or its checksum is another.
    """
    fields = {name: value for name, value in document.items() if name != CHECKSUM} if isinstance(document, dict) else {}
    try:
        bill = RunBill.from_wire(fields)
    except ManifestError as error:
        raise BillError(f"no bill of a run: {error}") from None
    if hashlib.sha256(content(fields)).hexdigest() != document.get(CHECKSUM):
        raise BillError(f"the bill of {bill.run} was changed: {CHECKSUM} {document.get(CHECKSUM)!r} is of another")
    return bill


def how_far(bill: RunBill) -> tuple[bool, datetime]:
    """Of two bills of a run the greater one holds: the one that is closed, else the one that goes further."""
    return bill.closed, bill.as_of or datetime.min.replace(tzinfo=UTC)


def bill_text(bill: RunBill) -> str:
    """A bill as an object or a file, for people too."""
    return json.dumps(sealed(bill), indent=2, ensure_ascii=False)


def bill_of(
    run: Mapping[str, Any], ledger: Mapping[str, Any] | None, estimates: Iterable[StorageEstimate] = ()
) -> RunBill | None:
    """The bill up to the newest look; None of a run that never held a pod.

    Args:
        run: the VideoTrainingRun with its status.
        ledger: content of its ledger, as it is stored; without one a row tells all.
        estimates: see RunBill.
    """
    status, head = read_status(run.get("status")).status, run["metadata"]
    cost = status.cost
    if cost is None:
        return None
    labels = head.get("labels") or {}
    rows = list(_rows(ledger or {}))
    finished = any(c.type in _FINISHED and c.status == "True" for c in status.conditions)
    return RunBill(
        run=head["name"],
        namespace=head.get("namespace", "default"),
        uid=head["uid"],
        team=labels.get(LABEL_TEAM, ""),
        cost_center=labels.get(LABEL_COST_CENTER, ""),
        phase=status.phase,
        created_at=head.get("creationTimestamp"),
        completed_at=status.completion_time,
        as_of=counted_until(cost, status),
        closed=finished and float(cost.rate_per_hour) == 0 and _booked(ledger or {}) == cost.total_micros,
        generation=status.generation,
        currency=cost.currency,
        total=cost.total,
        total_micros=cost.total_micros,
        estimated=cost.estimated,
        gpu_microseconds_by_bucket=cost.gpu_microseconds_by_bucket,
        micros_by_bucket=cost.micros_by_bucket,
        waste_micros_by_cause=cost.waste_micros_by_cause,
        months=cost.months,
        stages=cost.stages,
        ends=list(_ends(status.generations, cost)),
        estimates=list(estimates),
        rows=[*rows, *_rest(cost, status, rows)],
    )


def without_numbers(waste: Mapping[str, int]) -> dict[str, int]:
    """Waste by cause alone, without the generation that it ended."""
    found: dict[str, int] = {}
    for cause, micros in waste.items():
        plain = cause.partition("/")[0]
        found[plain] = found.get(plain, 0) + micros
    return found


def _booked(ledger: Mapping[str, Any]) -> int:
    """Micros of closed windows."""
    folded = sum(ledger.get("folded", {}).get("micros", {}).values())
    return sum(sum(entry["micros"].values()) for entry in ledger.get("entries", ())) + int(folded)


def _rows(ledger: Mapping[str, Any]) -> Iterable[BillRow]:
    for entry in [*ledger.get("folded", {}).get("groups", ()), *ledger.get("entries", ())]:
        begin, end = datetime.fromisoformat(entry["from"]), datetime.fromisoformat(entry["to"])
        length = (end - begin) // _MICROSECOND
        yield BillRow(
            from_=begin,
            to=end,
            pod=entry.get("pod", ""),
            pod_uid=entry.get("uid", ""),
            node=entry.get("node", ""),
            stage=entry.get("stage", ""),
            generation=entry.get("generation"),
            gpus=entry["gpus"],
            price=entry["price"],
            node_microseconds=entry.get("nodeMicroseconds", length),
            gpu_microseconds=entry["gpuMicroseconds"],
            micros=entry["micros"],
            waste=without_numbers(entry.get("waste", {})),
            estimated=entry["estimated"],
        )


def _rest(cost: CostStatus, status: RunStatus, rows: list[BillRow]) -> Iterable[BillRow]:
    """What is in the totals and in no row: windows that are still open, and totals of a ledger that was lost.

    The stages' shares are exact. Which bucket of which stage is not known, so the buckets are dealt out in order.
    """
    buckets = _left(cost.micros_by_bucket, (row.micros for row in rows))
    gpu_us = _left(cost.gpu_microseconds_by_bucket, (row.gpu_microseconds for row in rows))
    causes = _left(cost.waste_micros_by_cause, (row.waste for row in rows))
    begin = max((row.to for row in rows), default=status.start_time)
    end = counted_until(cost, status) or begin
    if end is None:
        return
    # Where clocks differ it may end before another begins, and a run that was suspended at once has no start; money of
    # no time at all would be in no month.
    begin = min(begin or end, end - _MICROSECOND)
    names = [*(stage.name for stage in cost.stages)] or [""]
    for name in names:
        known = next((stage for stage in cost.stages if stage.name == name), None)
        spent = cost.total_micros if known is None else known.total_micros
        left = spent - sum(row.total for row in rows if not name or row.stage == name)
        held = 0 if known is None else known.held_gpu_microseconds
        held -= sum(sum(row.gpu_microseconds.values()) for row in rows if row.stage == name)
        nodes = 0 if known is None else known.held_node_microseconds
        nodes -= sum(row.node_microseconds for row in rows if row.stage == name)
        if left <= 0 and held <= 0:
            continue
        micros = _dealt(buckets, left)
        yield BillRow(
            from_=begin,
            to=end,
            stage=name,
            node_microseconds=max(0, nodes),
            gpu_microseconds=_dealt(gpu_us, held),
            micros=micros,
            waste=_dealt(causes, left - micros.get(Bucket.PRODUCTIVE.value, 0)),
            estimated=cost.estimated,
        )
    if any(amount > 0 for amount in buckets.values()):  # of no stage that is known
        yield BillRow(
            from_=begin,
            to=end,
            node_microseconds=0,
            gpu_microseconds={name: amount for name, amount in gpu_us.items() if amount > 0},
            micros={name: amount for name, amount in buckets.items() if amount > 0},
            waste={name: amount for name, amount in causes.items() if amount > 0},
            estimated=cost.estimated,
        )


def replaces(bill: RunBill, stored: bytes | None) -> bool:
    """Whether a bill is to be written over what is in its place, which is anybody's text or None.

    What cannot be read was cut or changed, and whoever has the bill knows better.
    """
    try:
        there = None if stored is None else read_bill(json.loads(stored))
    except (ValueError, BillError):
        return True
    return there is None or there.uid != bill.uid or how_far(there) < how_far(bill)


def counted_until(cost: CostStatus, status: RunStatus) -> datetime | None:
    """Up to when all that nodes cost is in it; None before the first pass.

    Nothing was held between the time that the cost says and a later look at the pods. Where a watch is idle, pods were
    looked at up to a minute before their time was counted.
    """
    return max(filter(None, (cost.counted_until, status.observed_at)), default=None)


def _left(totals: Mapping[str, int], told: Iterable[Mapping[str, int]]) -> dict[str, int]:
    left = dict(totals)
    for amounts in told:
        for name, amount in amounts.items():
            left[name] = left.get(name, 0) - amount
    return left


def _dealt(pot: dict[str, int], amount: int) -> dict[str, int]:
    """So much of what is left, in order; `pot` loses it."""
    found: dict[str, int] = {}
    for name, left in pot.items():
        part = min(left, amount)
        if part > 0:
            found[name], pot[name], amount = part, left - part, amount - part
    return found


def _ends(generations: Iterable[GenerationStatus], cost: CostStatus) -> Iterable[BilledEnd]:
    spent = {one.number: one for one in cost.generations}
    for one in generations:
        if one.end_cause is not None and one.number in spent:
            yield BilledEnd(
                generation=one.number,
                stage=one.stage,
                cause=one.end_cause,
                reason=one.end_reason or "",
                message=one.end_message,
                at=one.ended_at,
                total_micros=spent[one.number].total_micros,
                wasted_micros=spent[one.number].wasted_micros,
            )


def within(row: BillRow, since: datetime | None, until: datetime | None) -> BillRow | None:
    """The part of a row between two times, evenly spread; None if there is none.

    Parts of neighbouring times sum to the row, to the micro.
    """
    begin = row.from_ if since is None else max(row.from_, since)
    end = row.to if until is None else min(row.to, until)
    if begin == row.from_ and end == row.to:
        return row
    if begin >= end:
        return None
    whole, first, last = ((at - row.from_) // _MICROSECOND for at in (row.to, begin, end))

    def part(amount: int) -> int:
        return amount * last // whole - amount * first // whole

    micros = {bucket: part(amount) for bucket, amount in row.micros.items()}
    wasted = sum(micros.values()) - micros.get(Bucket.PRODUCTIVE.value, 0)
    changes = {
        "from_": begin,
        "to": end,
        "node_microseconds": part(row.node_microseconds),
        "gpu_microseconds": {bucket: part(amount) for bucket, amount in row.gpu_microseconds.items()},
        "micros": micros,
        "waste": split(wasted, row.waste),
    }
    return row.model_copy(update=changes)
