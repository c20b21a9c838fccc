"""The ledger: held GPU time and money by use, exact and replayable.

A pod's held time is cut at the rosters of the run into windows. A window whose facts can no longer change is closed:
its entry is written once and never computed again. Open windows are computed afresh in every pass, so an operator that
was away changes nothing. The document is bounded: only the newest entries are listed, older ones live on in `folded`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

from videotrain_api.money import split
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.schema import Json
from videotrain_api.times import month_name, next_month, rfc3339
from videotrain_operator.accounting.attribution import EPOCH, FOREVER, Life, life_of, microseconds, pod_life, use
from videotrain_operator.accounting.entries import Totals, fold
from videotrain_operator.accounting.money import parse_price, price_at, price_buckets, price_schedule, with_later_prices
from videotrain_operator.accounting.stored_ledger import (
    VERSION,
    Awaited,
    Kind,
    Record,
    StageTotals,
    awaited_in,
    instant,
    name_parts,
    records_in,
    rows_of,
)

GENERATIONS_OPEN: Final = 14
"""Older generations are closed with what is known; status forgets them at 16."""
ROUNDED_US: Final = 1_000_000
"""The API server writes the creation of a pod in whole seconds."""
AHEAD_US: Final = 2_000_000
"""By so much the clock of a node may be ahead and is believed."""


_NOTHING_FOLDED: Final[Json] = Totals().to_folded() | {"groups": [], "entries": 0, "estimated": False}


class Holding(NamedTuple):
    """A pod that holds a node, by the API server's timestamps."""

    uid: str
    pod: str
    gpus: int
    price: str
    """`PRICE CURRENCY` per hour of a GPU, or of a node without GPUs, when it was created."""
    created_at: datetime
    bound_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    gone: bool = False
    """The object was deleted, which is sure; this is how it was last seen."""
    pool: str = ""
    """See `Kind`."""
    node: str = ""
    listed: str = ""
    """Schedule of prices by the cluster's list, see `money.price_schedule`, which holds whatever the run says; empty
    where the list has none."""


@dataclass(frozen=True)
class Bill:
    """Everything up to now, closed windows and open ones."""

    document: Json
    """The ledger to store, without pods that are awaited; equal to the one before if nothing was closed or is new."""
    totals: Totals
    estimated: bool
    gpus_held: int
    rate_micros_per_hour: int
    """What the nodes held now cost in an hour."""

    @property
    def gpu_microseconds(self) -> dict[str, int]:
        """By bucket."""
        return self.totals.gpu_microseconds

    @property
    def micros(self) -> dict[str, int]:
        """By bucket."""
        return self.totals.micros

    @property
    def stages(self) -> dict[str, StageTotals]:
        """Micros and GPU time sum to the totals."""
        return self.totals.stages

    @cached_property
    def held(self) -> int:
        """GPU time held so far, microseconds."""
        return sum(self.gpu_microseconds.values())

    @cached_property
    def total(self) -> int:
        """Spent so far, micros."""
        return sum(self.micros.values())


class Window(NamedTuple):
    """The time between two rosters."""

    number: int
    """Generation whose roster opened it; 0 before the first."""
    start: int
    end: int
    final: bool
    """Its facts can no longer change."""
    stage: str
    """What was worked on."""
    complete: int
    """When that was complete; FOREVER if it was not."""
    following: str
    """What the next roster works on."""


@dataclass
class _Amounts:
    """What a window of a pod amounts to; the same for all pods with the same history."""

    stage: str
    generation: int
    month: str
    node_microseconds: int
    gpu_microseconds: dict[str, int]
    micros: dict[str, int]
    waste: dict[str, int]
    open_windows: int = 0
    """How many open windows amount to this."""


@dataclass(slots=True)
class _Windows:
    """Of a pod from where it is closed."""

    through: int
    """Newest window that is closed then."""
    closed: list[tuple[Window, tuple[int, int, str], _Amounts]] = field(default_factory=list)
    """Those that are final, each in parts of one price and month: begin, end and price."""
    still_open: list[_Amounts] = field(default_factory=list)
    any_open: bool = False
    over: bool = False
    """Nothing of it is open any more."""


@dataclass
class _Book:
    """A ledger that is being written."""

    before: Mapping[str, Any]
    """As it was stored."""
    pods: dict[str, Record]
    entries: list[Json]
    folded: Json
    lives: list[Life]
    windows: list[Window]
    now: int
    worlds: dict[str, int]
    """By pod name: bit i is set if the pod is a member of generation i of `lives`."""
    begun: list[int]
    """When each of `lives` was created."""
    numbers: list[int]
    """Of `windows`, ascending."""
    pools: Mapping[str, str]
    """By stage."""
    known: dict[tuple[Any, ...], _Amounts] = field(default_factory=dict)
    alike: dict[tuple[Any, ...], _Windows] = field(default_factory=dict)
    """By times, kind and worlds of pods, which share the computation."""
    stages: dict[tuple[int, str, bool], str] = field(default_factory=dict)
    """What `_stage_of` found, by window, pool of the pod, and whether it was made late."""


def settle(
    document: Mapping[str, Any] | None,
    holdings: Iterable[Holding],
    generations: Sequence[GenerationStatus],
    *,
    now: datetime,
    observed_at: datetime | None,
    run_over: bool,
    stage: str = "",
    pools: Mapping[str, str] | None = None,
    missing: Collection[str] = (),
    incomplete: bool = False,
) -> Bill:
    """Close what is final and add up everything.

    Args:
        document: the stored ledger in the present form; None for a new run.
        holdings: pods that are there, and known ones that were deleted since.
        generations: status.generations with the newest facts, oldest first.
        now: time of this pass.
        observed_at: time of the pass before, at which every pod that was told then was there; bounds the end of a pod
            that vanished. One that vanished without any is billed for nothing, and the bill marked as estimated.
        run_over: the run succeeded or failed; no later generation can change what steps were worth.
        stage: what is worked on now, for time of which no generation tells.
        pools: of every stage, in their order, as pods are marked with them.
        missing: uids of pods that are missing, which nothing proves to be gone. They are billed up to when they were
            seen last, and from there on if they are seen again.
        incomplete: some pod may have been held of which nothing is known; marks the bill as estimated.
    """
    book = _open(document, generations, now, run_over=run_over, stage=stage, pools=pools or {})
    book.folded["estimated"] = book.folded["estimated"] or incomplete
    seen = _record(book, holdings, None if observed_at is None else microseconds(observed_at))
    last_look = None if observed_at is None else microseconds(observed_at)
    _bound_vanished(book, seen, missing, last_look)
    for uid, record in list(book.pods.items()):
        if _post(book, uid, record) and record.gone:
            book.folded["estimated"] = book.folded["estimated"] or record.estimated  # there may be no entry of it
            del book.pods[uid]
    fold(book.entries, book.folded)
    return _bill(book)


def rebuild(totals: Totals, holdings: Iterable[Holding], until: datetime) -> Json:
    """A ledger that stands in for a lost one: the totals up to a time, and the pods from there on.

    Args:
        totals: up to `until`.
        holdings: pods that are there.
        until: up to when the totals were counted.
    """
    folded = totals.to_folded() | {"entries": 0, "groups": [], "estimated": True, "until": rfc3339(until)}
    there = {held.uid: _new_record(held) for held in holdings if not held.gone}
    for record in there.values():
        record.closed_until = max(microseconds(until), record.bound)
    return {"version": VERSION} | rows_of(there, {}) | {"entries": [], "folded": folded}


def _open(
    document: Mapping[str, Any] | None,
    generations: Sequence[GenerationStatus],
    now: datetime,
    *,
    run_over: bool,
    stage: str,
    pools: Mapping[str, str],
) -> _Book:
    stored = document or {}
    folded = stored.get("folded", _NOTHING_FOLDED)
    newest = len(generations) - 1
    lives = [
        life_of(each, generations[index - 1] if index else None, run_over=run_over and index == newest)
        for index, each in enumerate(generations)
    ]
    pods = records_in(stored)
    closed = max((record.closed_through for record in pods.values()), default=-1)
    windows = _windows(generations, lives, closed, run_over, stage)
    return _Book(
        before=stored,
        pods=pods,
        entries=list(stored.get("entries", [])),
        folded=dict(folded),
        lives=lives,
        windows=windows,
        now=microseconds(now),
        worlds=_worlds(lives),
        begun=[life.created for life in lives],
        numbers=[window.number for window in windows],
        pools=pools,
    )


def _worlds(lives: Sequence[Life]) -> dict[str, int]:
    by_members: dict[tuple[str, ...], int] = {}
    for index, life in enumerate(lives):
        by_members[life.members] = by_members.get(life.members, 0) | 1 << index
    worlds: dict[str, int] = {}
    for members, bits in by_members.items():
        for name in members:
            worlds[name] = worlds.get(name, 0) | bits
    return worlds


def _windows(
    generations: Sequence[GenerationStatus], lives: Sequence[Life], closed: int, run_over: bool, stage: str
) -> list[Window]:
    """The time between rosters. `closed` is the newest window that is closed for any pod, -1 for none."""
    starts = [microseconds(generation.created_at) for generation in generations]
    ends = [*starts[1:], FOREVER]
    # A status that was emptied knows no generation, and the time goes on after what is closed.
    first = generations[0].number - 1 if generations else closed + 1
    names = [*(generation.stage for generation in generations), stage]
    start = starts[0] if starts else FOREVER
    windows = [Window(first, -(FOREVER), start, bool(generations) or run_over, names[0], FOREVER, "")]
    for index, generation in enumerate(generations):
        later = generations[index + 1 :]
        resumed = any(g.progress is not None and g.progress.resumed_step is not None for g in later)
        final = run_over or resumed or len(later) >= GENERATIONS_OPEN
        over = lives[index].over if generation.end_cause == "completed" else None
        complete, following = FOREVER if over is None else over, names[index + 1]
        windows.append(
            Window(generation.number, starts[index], ends[index], final, generation.stage, complete, following)
        )
    return windows


def _record(book: _Book, holdings: Iterable[Holding], last_look: int | None) -> set[str]:
    """Note every pod that is there or was seen to go; return their UIDs.

    A pod that was missing and is there again was never gone: what was taken for its end is taken back. What was closed
    by that stays, and the time since `closed_until` is open again. The price and the GPUs are those of the first look,
    or of when the pod was made, where that was noted; a price list that is another since the last look holds from
    there on, or from when its prices do.
    """
    seen = set()
    awaited = awaited_in(book.before)
    for held in holdings:
        record = book.pods.get(held.uid)
        unrecorded = record is None
        if record is None:
            newest = next((entry for entry in reversed(book.entries) if entry["uid"] == held.uid), None)
            if held.gone and newest is not None:
                continue
            number = name_parts(held.pod)[1]
            record = book.pods[held.uid] = _new_record(held, None if number is None else awaited.get(number))
            _leave_out_closed(book, record, newest)
        seen.add(held.uid)
        if held.listed and held.listed != record.kind.price:
            since = max(record.bound + 1, book.now if last_look is None else last_look, record.closed_until or 0)
            record.kind = record.kind._replace(price=with_later_prices(record.kind.price, held.listed, since))
        if record.gone and not held.gone:
            record.closed_through, record.gone, record.ended, record.estimated = -1, False, None, False
        # No look had it before it went, whatever the time of the newest.
        record.seen = record.bound if unrecorded and held.gone else None
        record.started = record.started if held.started_at is None else microseconds(held.started_at)
        record.ended = record.ended if held.finished_at is None else microseconds(held.finished_at)
        record.gone = held.gone
    return seen


def _new_record(held: Holding, awaited: Awaited | None = None) -> Record:
    made_before = awaited is not None and awaited.since <= microseconds(held.created_at) + ROUNDED_US
    price = awaited.kind.price if awaited is not None and made_before else held.price
    kind = Kind(held.gpus, held.listed or price, held.pool)
    created, bound = microseconds(held.created_at), microseconds(held.bound_at)
    return Record(held.pod, kind, created, bound, node=held.node)


def _leave_out_closed(book: _Book, record: Record, newest: Json | None) -> None:
    """What is closed for a pod that has no record, or may be, is not billed again; `newest` is its newest entry."""
    if newest is not None:
        record.closed_until = instant(newest["to"])
        return
    until = book.folded.get("until")
    if until is not None and record.bound < instant(until):
        book.folded["estimated"] = True  # it may be in totals that do not say whose they are
        record.closed_until = instant(until)


def _bound_vanished(book: _Book, seen: set[str], missing: Collection[str], last_look: int | None) -> None:
    """A pod that is gone ended when it finished, or at the latest when it was last seen."""
    for uid, record in book.pods.items():
        if uid in seen and not record.gone:
            continue
        # What is gone did not end later than now, whatever the clock of its node said.
        unsure = record.ended is None or record.ended > book.now + AHEAD_US
        if record.seen is None and unsure:
            record.seen = record.bound if last_look is None else max(last_look, record.bound)
        if uid in missing and uid not in seen:
            continue
        if unsure:
            record.ended, record.estimated = min(book.now, record.seen or book.now), True
        record.seen, record.gone = None, True


def _post(book: _Book, uid: str, record: Record) -> bool:
    """Close the final windows of one pod, and add up its open ones; whether nothing of it is open any more."""
    if record.ended is not None and record.ended <= max(record.bound, record.closed_until or 0):
        return True
    through, until = record.closed_through, record.closed_until
    times = (record.created, record.bound, record.started, record.ended, record.seen)
    key = (record.kind, through, until, times, book.worlds.get(record.pod, 0))
    if key not in book.alike:
        book.alike[key] = _followed(book, record)
    found = book.alike[key]
    for window, part, amounts in found.closed:
        record.closed_until = part[1]
        book.entries.append(_entry(uid, record, window, part, amounts))
    for amounts in found.still_open:
        amounts.open_windows += 1
    record.closed_through = found.through
    return found.over


def _followed(book: _Book, record: Record) -> _Windows:
    """What there is of a pod in each window that is not closed."""
    found = _Windows(record.closed_through)
    closed_until = record.closed_until
    for window in book.windows[bisect_right(book.numbers, record.closed_through) :]:
        start = max(window.start, record.bound if closed_until is None else closed_until)
        end = min(window.end, book.now)
        for at in (record.ended, record.seen):
            if at is not None and at < end:
                end = at
        end = max(start, end)
        over = record.ended is not None and record.ended <= min(window.end, book.now)
        # Windows close in order, so that one number per pod tells what is closed.
        closing = window.final and (over or window.end <= book.now) and not found.any_open
        for begin, until, price in _priced(record.kind, start, end):
            amounts = _amounts(book, record, window, begin, until, price)
            if closing:
                closed_until = until
                found.closed.append((window, (begin, until, price), amounts))
            else:
                found.still_open.append(amounts)
        if closing:
            found.through = window.number
        else:
            found.any_open = True
        if over:
            found.over = closing
            break
    return found


def _priced(kind: Kind, start: int, end: int) -> Sequence[tuple[int, int, str]]:
    """The parts of a time with one price in one calendar month each; none if it is empty."""
    prices = price_schedule(kind.price)
    if len(prices) == 1 and start < end <= month_end(start):
        return ((start, end, prices[0][1]),)
    ends = [*(since for since, _ in prices[1:]), end]
    found = []
    for (since, price), until in zip(prices, ends, strict=True):
        begin, until = max(start, since), min(end, until)
        while begin < until:
            found.append((begin, min(until, month_end(begin)), price))
            begin = found[-1][1]
    return found


@lru_cache(maxsize=16384)
def month_end(at: int) -> int:
    """When the calendar month of a time ends, microseconds since 1970: nobody's money is in two months."""
    return microseconds(next_month(EPOCH + timedelta(microseconds=at)))


def _stage_of(book: _Book, record: Record, window: Window) -> str:
    """The stage that a pod was there for: the window's, or the next for one that was made once that was complete.

    A pod of another pool waits for a stage to come, or is on its way out of one that is over.
    """
    # Members are made before their roster, by times of whole seconds.
    late, pool = record.created >= max(window.start, window.complete - ROUNDED_US), record.kind.pool
    if window.stage and not late and book.pools.get(window.stage, pool) == pool:
        return window.stage
    key = (window.number, pool, late)
    if key not in book.stages:
        names = list(book.pools)
        past = names[: names.index(window.stage)] if window.stage in names else []
        earlier = reversed(past)
        order = [window.following, window.stage, *earlier] if late else [window.stage, *earlier, window.following]
        fits = (name for name in order if name and book.pools.get(name, pool) == pool)
        book.stages[key] = next(fits, window.stage)
    return book.stages[key]


def _amounts(book: _Book, record: Record, window: Window, start: int, end: int, price: str) -> _Amounts:
    """GPU microseconds and micros by bucket; pods with the same history share the computation."""
    # A pod that took the name of a member later is not the member.
    older = bisect_left(book.begun, record.created)
    worlds, stage = book.worlds.get(record.pod, 0) >> older << older, _stage_of(book, record, window)
    # When a pod was started matters only until it is a member.
    key = (worlds, None if worlds & 1 else record.started, start, end, record.kind, stage, window.number, price)
    if key not in book.known:
        member_of = [bool(worlds >> index & 1) for index in range(len(book.lives))]
        kind, causes = record.kind, use(pod_life(book.lives, member_of, record.started), start, end)
        parts = {bucket: sum(by_cause.values()) for bucket, by_cause in causes.items()}
        gpu_us = {bucket: amount * kind.gpus for bucket, amount in parts.items()} if kind.gpus else {}
        micros = price_buckets(gpu_us or parts, parse_price(price)[0])
        waste: dict[str, int] = {}
        for bucket, by_cause in causes.items():
            for cause, amount in split(micros[bucket], by_cause).items():
                if cause and amount:
                    waste[cause] = waste.get(cause, 0) + amount
        month = month_name(EPOCH + timedelta(microseconds=start))
        book.known[key] = _Amounts(stage, window.number, month, end - start, gpu_us, micros, waste)
    return book.known[key]


def _entry(uid: str, record: Record, window: Window, part: tuple[int, int, str], amounts: _Amounts) -> Json:
    start, end, price = part
    return {
        "uid": uid,
        "pod": record.pod,
        "node": record.node,
        "generation": window.number,
        "stage": amounts.stage,
        "from": rfc3339(EPOCH + timedelta(microseconds=start)),
        "to": rfc3339(EPOCH + timedelta(microseconds=end)),
        "gpus": record.kind.gpus,
        "price": price,
        "gpuMicroseconds": dict(amounts.gpu_microseconds),
        "micros": dict(amounts.micros),
        "waste": dict(amounts.waste),
        "estimated": record.estimated,
    }


def _bill(book: _Book) -> Bill:
    totals = Totals.of_folded(book.folded)
    totals.add_entries(book.entries)
    for one in book.known.values():
        if one.open_windows:
            parts = (one.node_microseconds, one.gpu_microseconds, one.micros, one.waste)
            totals.add(one.stage, one.generation, one.month, *parts, one.open_windows)
    held = Counter(record.kind for record in book.pods.values() if record.ended is None)
    marked = book.folded["estimated"] or any(entry["estimated"] for entry in book.entries)
    rows = rows_of(book.pods, book.before)
    return Bill(
        document={"version": VERSION} | rows | {"entries": book.entries, "folded": book.folded},
        totals=totals,
        estimated=marked or any(record.estimated or record.seen is not None for record in book.pods.values()),
        gpus_held=sum(count * kind.gpus for kind, count in held.items()),
        rate_micros_per_hour=sum(
            count * (kind.gpus or 1) * parse_price(price_at(kind.price, book.now))[0] for kind, count in held.items()
        ),
    )
