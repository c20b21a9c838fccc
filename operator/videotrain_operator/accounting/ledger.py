"""The ledger: held GPU time and money by use, exact and replayable.

A pod's held time is cut at the rosters of the run into windows. A window whose facts can no longer change is closed:
its entry is written once and never computed again. Open windows are computed afresh in every pass, so an operator that
was away changes nothing. The document is bounded: only the newest entries are listed, older ones live on in `folded`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

from videotrain_api.resource.status import GenerationStatus
from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_operator.accounting.attribution import EPOCH, FOREVER, Life, life_of, microseconds, pod_life, use
from videotrain_operator.accounting.money import parse_price, price_buckets

ENTRIES_LISTED: Final = 400
"""Closed entries that the document lists, at about 300 bytes each; a config map holds 1 MiB."""
GENERATIONS_OPEN: Final = 14
"""Older generations are closed with what is known; status forgets them at 16."""


class Holding(NamedTuple):
    """A pod that holds a node, by the API server's timestamps."""

    uid: str
    pod: str
    gpus: int
    price: str
    """`PRICE CURRENCY` per GPU-hour when it was created."""
    created_at: datetime
    bound_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    gone: bool = False
    """The object was deleted; this is how it was last seen."""


@dataclass(frozen=True)
class Bill:
    """Totals by bucket: closed, and with the open windows."""

    document: Json
    """The ledger to store; equal to the one before if nothing was closed, bound or finished."""
    gpu_microseconds: dict[str, int]
    micros: dict[str, int]
    estimated: bool
    gpus_held: int
    rate_micros_per_hour: int
    """What the GPUs held now cost in an hour."""

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


@dataclass
class _Amounts:
    """What a window of a pod amounts to; the same for all pods with the same history."""

    gpu_microseconds: dict[str, int]
    micros: dict[str, int]
    open_windows: int = 0
    """How many open windows amount to this."""


@dataclass
class _Book:
    """A ledger that is being written."""

    pods: dict[str, Json]
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
    known: dict[tuple[Any, ...], _Amounts] = field(default_factory=dict)


def settle(
    document: Mapping[str, Any] | None,
    holdings: Iterable[Holding],
    generations: Sequence[GenerationStatus],
    *,
    now: datetime,
    observed_at: datetime | None,
    run_over: bool,
) -> Bill:
    """Close what is final and add up everything.

    Args:
        document: the stored ledger; None for a new run.
        holdings: pods that are there, and known ones that were deleted since.
        generations: status.generations with the newest facts, oldest first.
        now: time of this pass.
        observed_at: time of the pass before; bounds the end of a pod that vanished.
        run_over: the run succeeded or failed; no later generation can change what steps were worth.
    """
    book = _open(document, generations, now, run_over=run_over)
    seen = _record(book, holdings)
    _bound_vanished(book, seen, observed_at or now)
    for uid, record in list(book.pods.items()):
        _post(book, uid, record)
        if record.get("gone") and record["closedThrough"] >= book.windows[-1].number:
            del book.pods[uid]
    _fold(book)
    return _bill(book)


def rebuild(
    gpu_microseconds: Mapping[str, int], micros: Mapping[str, int], holdings: Iterable[Holding], until: datetime
) -> Json:
    """A ledger that stands in for a lost one: the totals up to a time, and the pods from there on.

    Args:
        gpu_microseconds: totals by bucket.
        micros: totals by bucket.
        holdings: pods that are there.
        until: up to when the totals were counted.
    """
    folded = {
        "entries": 0,
        "gpuMicroseconds": dict(gpu_microseconds),
        "micros": dict(micros),
        "estimated": True,
        "until": _text(until),
    }
    pods = {h.uid: {"closedThrough": -1, "closedUntil": _text(max(until, h.bound_at))} for h in holdings if not h.gone}
    return {"version": 1, "pods": pods, "entries": [], "folded": folded}


def _open(
    document: Mapping[str, Any] | None, generations: Sequence[GenerationStatus], now: datetime, *, run_over: bool
) -> _Book:
    stored = document or {}
    folded = stored.get("folded", {"entries": 0, "gpuMicroseconds": {}, "micros": {}, "estimated": False})
    lives = [life_of(generation, run_over=run_over) for generation in generations]
    windows = _windows(generations, _closed(stored), run_over=run_over)
    return _Book(
        pods={uid: dict(record) for uid, record in stored.get("pods", {}).items()},
        entries=list(stored.get("entries", [])),
        folded={
            **folded,
            "gpuMicroseconds": dict(folded["gpuMicroseconds"]),
            "micros": dict(folded["micros"]),
        },
        lives=lives,
        windows=windows,
        now=microseconds(now),
        worlds=_worlds(lives),
        begun=[life.created for life in lives],
        numbers=[window.number for window in windows],
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


def _closed(document: Mapping[str, Any]) -> int:
    """Newest window that is closed for any pod; -1 for none."""
    return max((record["closedThrough"] for record in document.get("pods", {}).values()), default=-1)


def _windows(generations: Sequence[GenerationStatus], closed: int, *, run_over: bool) -> list[Window]:
    starts = [microseconds(generation.created_at) for generation in generations]
    ends = [*starts[1:], FOREVER]
    # A status that was emptied knows no generation, and the time goes on after what is closed.
    unknown = max(closed, 0) if run_over else closed + 1
    first = generations[0].number - 1 if generations else unknown
    windows = [Window(first, -(FOREVER), starts[0] if starts else FOREVER, bool(generations) or run_over)]
    for index, generation in enumerate(generations):
        later = generations[index + 1 :]
        resumed = any(g.progress is not None and g.progress.resumed_step is not None for g in later)
        final = run_over or resumed or len(later) >= GENERATIONS_OPEN
        windows.append(Window(generation.number, starts[index], ends[index], final))
    return windows


def _record(book: _Book, holdings: Iterable[Holding]) -> set[str]:
    """Note every pod that is there or was seen to go; return their UIDs.

    A pod that was missing and is there again was never gone: what was taken for its end is taken back. What was closed
    by that stays, and the time since `closedUntil` is open again. The price and the GPUs are those of the first look.
    """
    seen = set()
    for held in holdings:
        if held.gone and held.uid not in book.pods and any(entry["uid"] == held.uid for entry in book.entries):
            continue
        seen.add(held.uid)
        record = book.pods[held.uid] if held.uid in book.pods else _closed_before(book, held)
        book.pods[held.uid] = record
        if record.get("gone") and not held.gone:
            record["closedThrough"] = -1
            for fact in ("gone", "finishedAt", "estimated"):
                record.pop(fact, None)
        record.update(_facts(held) | {key: record[key] for key in ("price", "gpus") if key in record})
    return seen


def _closed_before(book: _Book, held: Holding) -> Json:
    """The record of a pod that has none: what is closed for it, or may be, is not billed again."""
    newest = next((entry for entry in reversed(book.entries) if entry["uid"] == held.uid), None)
    if newest is not None:
        return {"closedThrough": newest["generation"], "closedUntil": newest["to"], "gone": True}
    until = book.folded.get("until")
    if until is None or held.bound_at >= datetime.fromisoformat(until):
        return {"closedThrough": -1}
    book.folded["estimated"] = True  # it may be in totals that do not say whose they are
    return {"closedThrough": -1, "closedUntil": until}


def _facts(held: Holding) -> Json:
    facts: Json = {
        "pod": held.pod,
        "gpus": held.gpus,
        "price": held.price,
        "createdAt": _text(held.created_at),
        "boundAt": _text(held.bound_at),
    }
    if held.started_at:
        facts["startedAt"] = _text(held.started_at)
    if held.finished_at:
        facts["finishedAt"] = _text(held.finished_at)
    if held.gone:
        facts["gone"] = True
    return facts


def _bound_vanished(book: _Book, seen: set[str], observed_at: datetime) -> None:
    """A pod that is no longer there ended when it finished, or at the latest when it was last seen."""
    for uid, record in book.pods.items():
        vanished = uid not in seen or record.get("gone")
        if vanished and "finishedAt" not in record:
            last = max(observed_at, datetime.fromisoformat(record["boundAt"]))
            record |= {"finishedAt": _text(last), "estimated": True}
        if vanished:
            record["gone"] = True


def _post(book: _Book, uid: str, record: Json) -> None:
    """Close the final windows of one pod, and add up its open ones."""
    created = _us(record["createdAt"])
    ended = _us(record["finishedAt"]) if "finishedAt" in record else None
    in_order = True
    for window in book.windows[bisect_right(book.numbers, record["closedThrough"]) :]:
        start = max(window.start, _us(record["closedUntil"] if "closedUntil" in record else record["boundAt"]))
        end = max(start, min(window.end, book.now if ended is None else ended))
        amounts = _amounts(book, record, created, start, end)
        complete = ended is not None or window.end < FOREVER
        if in_order and window.final and complete:
            record["closedThrough"] = window.number
            if end > start:
                record["closedUntil"] = _text(EPOCH + timedelta(microseconds=end))
                book.entries.append(_entry(uid, record, window, start, end, amounts))
            continue
        in_order = False  # windows close in order, so that one number per pod tells what is closed
        if end > start:
            amounts.open_windows += 1


def _amounts(book: _Book, record: Json, created: int, start: int, end: int) -> _Amounts:
    """GPU microseconds and micros by bucket; pods with the same history share the computation."""
    # A pod that took the name of a member later is not the member.
    older = bisect_left(book.begun, created)
    worlds = book.worlds.get(record["pod"], 0) >> older << older
    started = _us(record["startedAt"]) if "startedAt" in record else None
    # When a pod was started matters only until it is a member.
    key = (worlds, None if worlds & 1 else started, start, end, record["gpus"], record["price"])
    if key not in book.known:
        member_of = [bool(worlds >> index & 1) for index in range(len(book.lives))]
        chain = pod_life(book.lives, member_of, started)
        gpu_us = {bucket: amount * record["gpus"] for bucket, amount in use(chain, start, end).items()}
        price, _ = parse_price(record["price"])
        book.known[key] = _Amounts(gpu_us, price_buckets(gpu_us, price))
    return book.known[key]


def _entry(uid: str, record: Json, window: Window, start: int, end: int, amounts: _Amounts) -> Json:
    return {
        "uid": uid,
        "pod": record["pod"],
        "generation": window.number,
        "from": _text(EPOCH + timedelta(microseconds=start)),
        "to": _text(EPOCH + timedelta(microseconds=end)),
        "gpus": record["gpus"],
        "price": record["price"],
        "gpuMicroseconds": dict(amounts.gpu_microseconds),
        "micros": dict(amounts.micros),
        "estimated": bool(record.get("estimated")),
    }


def _fold(book: _Book) -> None:
    """Keep the newest entries; add the others to the folded totals."""
    surplus = max(0, len(book.entries) - ENTRIES_LISTED)
    for entry in book.entries[:surplus]:
        book.folded["entries"] += 1
        book.folded["estimated"] = book.folded["estimated"] or entry["estimated"]
        book.folded["until"] = max(book.folded.get("until", entry["to"]), entry["to"], key=_us)
        for name in ("gpuMicroseconds", "micros"):
            _add(book.folded[name], entry[name])
    del book.entries[:surplus]


def _add(totals: dict[str, int], more: Mapping[str, int], times: int = 1) -> None:
    for bucket, amount in more.items():
        totals[bucket] = totals.get(bucket, 0) + amount * times


def _bill(book: _Book) -> Bill:
    gpu_us, micros = dict(book.folded["gpuMicroseconds"]), dict(book.folded["micros"])
    for entry in book.entries:
        _add(gpu_us, entry["gpuMicroseconds"])
        _add(micros, entry["micros"])
    for amounts in book.known.values():
        if amounts.open_windows:
            _add(gpu_us, amounts.gpu_microseconds, amounts.open_windows)
            _add(micros, amounts.micros, amounts.open_windows)
    held = [record for record in book.pods.values() if "finishedAt" not in record]
    marks = [book.folded, *book.entries, *book.pods.values()]
    return Bill(
        document={"version": 1, "pods": book.pods, "entries": book.entries, "folded": book.folded},
        gpu_microseconds=gpu_us,
        micros=micros,
        estimated=any(mark.get("estimated") for mark in marks),
        gpus_held=sum(record["gpus"] for record in held),
        rate_micros_per_hour=sum(record["gpus"] * parse_price(record["price"])[0] for record in held),
    )


@lru_cache(maxsize=16384)
def _text(at: datetime) -> str:
    return rfc3339(at)


@lru_cache(maxsize=16384)
def _us(text: str) -> int:
    return microseconds(datetime.fromisoformat(text))
