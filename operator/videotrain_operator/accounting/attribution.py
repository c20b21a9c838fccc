"""What a worker pod's time was used for, from the facts of the generations that it lived through.

All times are integer microseconds since 1970. A pod's life is a chain of spans without gaps, so whatever interval is
held, its parts sum to it.

    created ....... started ........ saved ......... last step ... workers gone ..... next roster
      | starting or    | productive,    | lost, if the   | draining,     | restarting, starting
      | restarting     | checkpoint and | next world     | stalled or    | or idle
      |                | data stall     | resumed before | lost          |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from videotrain_api.records import GenerationProgress
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.vocabulary import Bucket, GenerationReason

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FOREVER: Final = 2**62
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(at: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (at - EPOCH) // _MICROSECOND


class Span(NamedTuple):
    """A stretch of time with one use; a working one holds two kinds of waiting."""

    start: int
    end: int
    bucket: Bucket
    data_us: int = 0
    """Of it: waiting for input."""
    checkpoint_us: int = 0
    """Of it: waiting for a checkpoint."""
    cause: str = ""
    """Why it bought no progress, see `cause_of`; empty where that follows from the bucket alone."""


@dataclass(frozen=True)
class Life:
    """What a member of one generation did, from its roster on."""

    number: int
    members: tuple[str, ...]
    created: int
    work: int | None
    """When its workers were ready to train."""
    over: int | None
    """When its workers were gone."""
    spans: tuple[Span, ...]
    """From `created` to FOREVER."""


def life_of(generation: GenerationStatus, before: GenerationStatus | None = None, *, run_over: bool) -> Life:
    """The uses of a member's time. What is not known yet is provisional; see `ledger.settle` for when it is final.

    Args:
        generation: whose members.
        before: the generation before it, whose end made it necessary.
        run_over: the run succeeded or failed.
    """
    facts = generation.progress
    created = microseconds(generation.created_at)
    work = _at(facts.started_at if facts else None, created)
    last = _at(facts.last_step_at if facts else None, work or created)
    over = _at(facts.ended_at if facts else None, last or work or created)
    first = generation.reason in (GenerationReason.STARTED, GenerationReason.STAGE_STARTED)
    begun = Bucket.STARTING if first else Bucket.RESTARTING
    end, cause = _end_cause(generation), "" if first or before is None else _end_cause(before)
    marks = [Span(created, work or over or FOREVER, begun, cause=cause)]
    if facts is not None and work is not None:
        if last is not None:
            marks += _work(generation, facts, work, last)
        marks.append(Span(last or work, over or FOREVER, _tail_bucket(generation, facts), cause=end))
    if over is not None:
        marks.append(Span(over, FOREVER, _after_bucket(generation, run_over=run_over), cause=end))
    spans = tuple(span for span in marks if span.end > span.start)
    return Life(generation.number, tuple(generation.members), created, work, over, spans)


def _end_cause(generation: GenerationStatus) -> str:
    """Such as `infrastructure/3`, with the generation's number; `unknown/3` while it is not on record."""
    return f"{generation.end_cause or 'unknown'}/{generation.number}"


_WAITS: Final = {
    Bucket.STARTING: "start",
    Bucket.IDLE: "idle",
    Bucket.DATA_STALL: "data",
    Bucket.CHECKPOINT: "checkpoint",
}
"""Buckets that nobody's end is the cause of."""


def cause_of(bucket: Bucket, span: Span) -> str:
    """Why time bought no progress; empty if it did.

    `start`, `idle`, `data` or `checkpoint`, or what ended a generation, with its number: `infrastructure/3`. What that
    includes: steps that were lost, the way out, and everything up to when the next generation's workers are ready.
    """
    return "" if bucket is Bucket.PRODUCTIVE else _WAITS.get(bucket) or span.cause or "unknown"


def _at(at: datetime | None, earliest: int) -> int | None:
    return None if at is None else max(microseconds(at), earliest)


def _work(generation: GenerationStatus, facts: GenerationProgress, work: int, last: int) -> list[Span]:
    """The steps: those that count, then those that a later generation had to do again."""
    cut, data_us, checkpoint_us = _kept(generation.lost_from_step, facts, work, last)
    data_us = min(data_us, cut - work)
    checkpoint_us = min(checkpoint_us, cut - work - data_us)
    return [
        Span(work, cut, Bucket.PRODUCTIVE, data_us, checkpoint_us),
        Span(cut, last, Bucket.LOST, cause=_end_cause(generation)),
    ]


def _kept(resumed: int | None, facts: GenerationProgress, work: int, last: int) -> tuple[int, int, int]:
    """End of the steps that count, and the two waiting times up to there."""
    first = facts.resumed_step or 0
    if resumed is None or resumed >= facts.step:
        return last, facts.data_stall_us, facts.checkpoint_us
    if resumed <= first:
        return work, 0, 0
    for point in facts.saved:
        if point.step == resumed:
            at = min(max(microseconds(point.captured_at), work), last)
            return at, point.data_stall_us, point.checkpoint_us
    # No saved point tells when that step ended (work units are not saved, old points are forgotten): even steps.
    done, all_done = resumed - first, facts.step - first
    at = work + (last - work) * done // all_done
    return at, facts.data_stall_us * done // all_done, facts.checkpoint_us * done // all_done


def _tail_bucket(generation: GenerationStatus, facts: GenerationProgress) -> Bucket:
    """After the last step: what was not finished, or the way out."""
    if generation.end_cause == "hang":
        return Bucket.STALLED
    if generation.end_cause == "completed" or facts.state == "succeeded":
        return Bucket.CHECKPOINT
    if facts.state == "failed" or generation.end_cause in ("application", "infrastructure"):
        return Bucket.LOST
    if generation.end_cause is None and facts.state in ("starting", "running"):
        return Bucket.PRODUCTIVE
    return Bucket.DRAINING


def _after_bucket(generation: GenerationStatus, *, run_over: bool) -> Bucket:
    if run_over or generation.end_reason == "Suspended":
        return Bucket.IDLE
    completed = generation.end_cause == "completed" or (
        generation.end_cause is None and generation.progress is not None and generation.progress.state == "succeeded"
    )
    return Bucket.STARTING if completed else Bucket.RESTARTING


class Piece(NamedTuple):
    """The part of a span that a pod lived through."""

    start: int
    end: int
    span: Span


def pod_life(lives: Sequence[Life], member_of: Sequence[bool], started: int | None) -> list[Piece]:
    """A pod's whole life without gaps, from the beginning of time to FOREVER.

    Args:
        lives: generations, oldest first.
        member_of: for each, whether the pod is one of its members.
        started: when the pod's container started.
    """
    chain = [_piece(-FOREVER, FOREVER, Bucket.STARTING)]
    last: Life | None = None
    for life, member in zip(lives, member_of, strict=True):
        takeover = life.created if last is None or last.over is None else max(life.created, last.over)
        if member:
            takeover = takeover if life.work is None else min(takeover, life.work)
            chain = _cut(chain, takeover) + _from(life.spans, takeover)
            last = life
        elif last is not None:
            chain = [*_cut(chain, takeover), _piece(takeover, FOREVER, Bucket.IDLE)]
        elif started is not None:
            chain = _wait(chain, life, max(started, life.created))
    return chain


def _piece(start: int, end: int, bucket: Bucket) -> Piece:
    return Piece(start, end, Span(start, end, bucket))


def _cut(chain: Sequence[Piece], at: int) -> list[Piece]:
    """The chain up to `at`."""
    return [Piece(p.start, min(p.end, at), p.span) for p in chain if p.start < at]


def _from(spans: Sequence[Span], at: int) -> list[Piece]:
    """The spans after `at`; the first one reaches back to it."""
    pieces = [Piece(max(span.start, at), span.end, span) for span in spans if span.end > at]
    return [pieces[0]._replace(start=at), *pieces[1:]]


def _wait(chain: Sequence[Piece], life: Life, since: int) -> list[Piece]:
    """A pod that is ready while a world runs without it is idle; between worlds it is starting."""
    until = FOREVER if life.over is None else max(life.over, since)
    waiting = [_piece(since, until, Bucket.IDLE), _piece(until, FOREVER, Bucket.STARTING)]
    return _cut(chain, since) + [piece for piece in waiting if piece.end > piece.start]


def use(chain: Sequence[Piece], start: int, end: int) -> dict[str, dict[str, int]]:
    """Microseconds between two times by bucket, and in each by cause; they sum to `end - start`. See `cause_of`."""
    buckets: dict[str, dict[str, int]] = {}
    for piece in chain:
        a, b = max(piece.start, start), min(piece.end, end)
        if b > a:
            for bucket, amount in _parts(piece.span, a, b):
                if amount:
                    causes, cause = buckets.setdefault(bucket.value, {}), cause_of(bucket, piece.span)
                    causes[cause] = causes.get(cause, 0) + amount
    return buckets


def _parts(span: Span, start: int, end: int) -> list[tuple[Bucket, int]]:
    data = _share(span, span.data_us, end) - _share(span, span.data_us, start)
    checkpoint = _share(span, span.checkpoint_us, end) - _share(span, span.checkpoint_us, start)
    rest = (end - start) - data - checkpoint
    return [(span.bucket, rest), (Bucket.DATA_STALL, data), (Bucket.CHECKPOINT, checkpoint)]


def _share(span: Span, amount: int, at: int) -> int:
    """How much of a span's waiting lies before `at`: evenly spread, and whole at its end."""
    inside = min(max(at, span.start), span.end) - span.start
    return amount * inside // (span.end - span.start)
