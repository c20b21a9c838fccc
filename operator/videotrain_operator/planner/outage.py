"""Outages: from the end of a world before its time to the first step after it, and what that cost."""

from __future__ import annotations

from typing import Final, NamedTuple

from videotrain_api.money import MICROSECONDS_PER_HOUR, format_micros
from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.status import CostStatus, GenerationStatus, OutageStatus
from videotrain_api.vocabulary import PLANNED, Bucket
from videotrain_operator.planner.draft import Draft

WASTE: Final = (Bucket.LOST, Bucket.STALLED, Bucket.DRAINING, Bucket.RESTARTING)
"""Buckets into which an outage puts GPU time."""


class Ended(NamedTuple):
    """An outage that is over."""

    reason: Reason
    """Resized if it was planned, else Recovered."""
    message: str


def wasted(cost: CostStatus | None) -> tuple[int, int]:
    """GPU microseconds and micros that bought no progress so far."""
    if cost is None:
        return 0, 0
    gpu_us, micros = cost.gpu_microseconds_by_bucket, cost.micros_by_bucket
    return sum(gpu_us.get(b.value, 0) for b in WASTE), sum(micros.get(b.value, 0) for b in WASTE)


def track_outage(draft: Draft) -> Ended | None:
    """Note when an outage begins, and tell what it cost once steps go on.

    Returns:
        The outage that ended in this pass; None if none did.
    """
    last, outage = draft.last, draft.status.outage
    if draft.finished() or last is None or last.end_reason == Reason.SUSPENDED:
        draft.update(outage=None)
    elif draft.ended and last.end_cause != "completed" and (outage is None or _turned_bad(outage, last)):
        _begin(draft, last, outage)
    elif outage is not None and last.number > outage.generation and last.progress and last.progress.first_step_at:
        draft.update(outage=None)
        return _tell(draft, outage, last)
    return None


def _turned_bad(outage: OutageStatus, last: GenerationStatus) -> bool:
    """A fault came while the world was changed as planned."""
    return outage.reason in PLANNED and last.end_reason not in PLANNED


def _begin(draft: Draft, last: GenerationStatus, planned: OutageStatus | None) -> None:
    # The bill of the pass before: in the present one, time since the last step already counts as wasted.
    gpu_us, micros = wasted(draft.before.cost)
    outage = OutageStatus(
        generation=planned.generation if planned else last.number,
        reason=last.end_reason or "",
        message=last.end_message,
        since=planned.since if planned else draft.now,
        wasted_gpu_microseconds=planned.wasted_gpu_microseconds if planned else gpu_us,
        wasted_micros=planned.wasted_micros if planned else micros,
    )
    draft.update(outage=outage)


def _tell(draft: Draft, outage: OutageStatus, now: GenerationStatus) -> Ended:
    facts = now.progress
    assert facts is not None
    assert facts.first_step_at is not None
    resumed = facts.resumed_step or 0
    hit = [g for g in draft.status.generations if outage.generation <= g.number < now.number and g.stage == now.stage]
    reached = max((g.progress.step for g in hit if g.progress), default=resumed)
    gpu_us, micros = wasted(draft.status.cost)
    minutes = 60 * max(0, gpu_us - outage.wasted_gpu_microseconds) / MICROSECONDS_PER_HOUR
    seconds = max(0.0, (facts.first_step_at - outage.since).total_seconds())
    planned = outage.reason in PLANNED
    reason, form = (Reason.RESIZED, Message.RESIZED) if planned else (Reason.RECOVERED, Message.RECOVERED)
    message = form.text(
        number=now.number,
        nodes=len(now.members),
        step=resumed,
        lost=max(0, reached - resumed),
        seconds=f"{seconds:.0f}",
        minutes=f"{minutes:.1f}",
        money=format_micros(max(0, micros - outage.wasted_micros)),
        currency=draft.spec.pool.currency,
        reason=outage.reason,
        why=outage.message,
    )
    draft.tell("Normal", reason, message)
    return Ended(reason, message)
