"""The ledger as it is stored: a row per pod, so that the largest run fits into a config map, and who may read it.

A ledger of which any part cannot be read is no ledger: a bill from the rest would look exact and be wrong. The totals
in the status take its place, as if it had been deleted, and the bill counts as estimated from then on.

    pod      what the names of all pods begin with, such as `demo-w`
    node     what the names of all nodes begin and end with
    kinds    GPUs and price of pods: [8, "2.50 USD"], by the GPU; of a pool of some stages, without GPUs and
             so by the node: [0, "1.60 USD", "curate"]; prices that change are schedules, see `money.price_schedule`
    pods     by uid: [number or name, kind, created, bound, started, ended, closed through, closed until, seen, marks,
             rest of the node's name]
    awaited  pods that were made or are about to be: [first number, last number, kind, since]
    entries  newest closed windows
    folded   totals of all older ones; by stage: [microseconds of nodes, of GPUs, micros] and by cause; by month;
             and groups of them

Times are microseconds since 1970.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

from videotrain_api.render.names import POD_SEPARATOR
from videotrain_api.resource.stored_status import LARGEST, LARGEST_GROUP, implausible
from videotrain_api.schema import ApiModel, Json, patterned
from videotrain_operator.accounting.attribution import microseconds
from videotrain_operator.accounting.money import parse_price, price_schedule

VERSION: Final = 2
GONE: Final = 1
"""Mark of a pod whose object was deleted."""
ESTIMATED: Final = 2
"""Mark of a pod whose end is a guess, never too late."""
BOUND: Final = 3
"""Column of a pod's row."""
ENDED: Final = 5
RECOMPUTED: Final = frozenset({4, 6, 7})
"""Columns that are computed again from what is still there: when it started, and what is closed."""


class Kind(NamedTuple):
    """What an hour of a pod costs."""

    gpus: int
    price: str
    """`PRICE CURRENCY` per hour of a GPU, or of a node without GPUs."""
    pool: str = ""
    """The first stage with the pool that it was made for; empty for that of the run."""

    def to_row(self) -> list[Any]:
        """As it is stored."""
        return list(self) if self.pool else [self.gpus, self.price]


@dataclass(slots=True)
class Record:
    """What is known of a pod that holds, or held, a node. Times are microseconds since 1970."""

    pod: str
    kind: Kind
    created: int
    bound: int
    started: int | None = None
    ended: int | None = None
    closed_through: int = -1
    """Newest window that is closed."""
    closed_until: int | None = None
    """End of what is closed."""
    seen: int | None = None
    """When it was seen last, while it is missing and nothing proves that it is gone."""
    gone: bool = False
    estimated: bool = False
    node: str = ""
    """Its name; empty if it is not known."""


class StageTotals(NamedTuple):
    """What a stage took."""

    node_microseconds: int = 0
    gpu_microseconds: int = 0
    micros: int = 0


class Awaited(NamedTuple):
    """A pod that an operator made, or was about to, and of which nothing else is recorded."""

    kind: Kind
    since: int
    """When that was noted."""


def read_ledger(text: str) -> Json | None:
    """A stored ledger in the present form; None if it cannot be settled.

    Numbers are strict, as JSON has them: 1.0 and "1" are not the 1 that is calculated with.

    Args:
        text: JSON that was stored, by this version or the one before.
    """
    try:
        document = json.loads(text)
        if isinstance(document, dict) and document.get("version") == 1:
            return _from_texts(_TextLedger.model_validate_json(text, strict=True), document)
        _check(_Ledger.model_validate_json(text, strict=True))
        _check_windows(document)
    except (ValueError, OverflowError, RecursionError):
        return None
    return dict(document)


def records_in(document: Mapping[str, Any]) -> dict[str, Record]:
    """The pods of a ledger by uid; they are the caller's."""
    kinds = [Kind(*kind) for kind in document.get("kinds", ())]
    prefix, (head, tail) = document.get("pod", ""), document.get("node", ("", ""))
    found = {}
    for uid, row in document.get("pods", {}).items():
        pod, kind, created, bound, started, ended, through, until, seen, marks, *node = row
        name = pod if isinstance(pod, str) else f"{prefix}{pod}"
        gone, estimated = bool(marks & GONE), bool(marks & ESTIMATED)
        on = head + node[0] + tail if node and node[0] is not None else ""
        times = (created, bound, started, ended, through, until, seen)
        found[uid] = Record(name, kinds[kind], *times, gone, estimated, on)
    return found


def open_pods(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Uid and name of each pod of a ledger of which no end is known."""
    prefix = document.get("pod", "")
    for uid, row in document.get("pods", {}).items():
        if row[ENDED] is None:
            yield uid, row[0] if isinstance(row[0], str) else f"{prefix}{row[0]}"


def awaited_in(document: Mapping[str, Any]) -> dict[int, Awaited]:
    """Pods that are made, or about to be, by number."""
    kinds = [Kind(*kind) for kind in document.get("kinds", ())]
    return {
        number: Awaited(kinds[kind], since)
        for first, last, kind, since in document.get("awaited", ())
        for number in range(first, last + 1)
    }


def rows_of(records: Mapping[str, Record], before: Mapping[str, Any]) -> Json:
    """The parts `pod`, `kinds` and `pods` of a ledger in which nothing is awaited.

    Args:
        records: pods by uid.
        before: the ledger as it was stored; the numbers of its kinds stay, so that rows of pods do.
    """
    prefix = before.get("pod") or next((name_parts(record.pod)[0] for record in records.values()), "")
    kinds = {Kind(*kind): number for number, kind in enumerate(before.get("kinds", ()))}
    first, last = _common({r.node for r in records.values() if r.node}, before.get("node", ("", "")))
    own = slice(len(first), -len(last) or None)
    rows = {}
    for uid, r in records.items():
        head, number = name_parts(r.pod)
        pod = number if number is not None and head == prefix else r.pod
        kind = kinds.setdefault(r.kind, len(kinds))
        marks = GONE * r.gone + ESTIMATED * r.estimated
        node = r.node[own] if r.node else None
        times = (r.created, r.bound, r.started, r.ended, r.closed_through, r.closed_until, r.seen)
        rows[uid] = [pod, kind, *times, marks, node]
    kept = [kind.to_row() for kind in kinds]
    return {"pod": prefix, "node": [first, last], "kinds": kept, "pods": rows, "awaited": []}


def _common(names: set[str], before: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with; as before if that still holds, so that rows stay."""
    first, last = before
    least = len(first) + len(last)
    if any(before) and all(len(n) >= least and n.startswith(first) and n.endswith(last) for n in names):
        return first, last
    first = _beginning(names)
    return first, _beginning({name[len(first) :][::-1] for name in names})[::-1]


def _beginning(names: set[str]) -> str:
    if not names:
        return ""
    low, high = min(names), max(names)  # what these have in common, all between them have
    same = next((index for index, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:same]


def with_awaited(document: Json, awaited: Mapping[int, Awaited]) -> Json:
    """The ledger in which these pods are awaited.

    Args:
        document: in the present form; it is not changed.
        awaited: pods that are made, or about to be, by number.
    """
    kinds = {Kind(*kind): number for number, kind in enumerate(document["kinds"])}
    spans: list[list[int]] = []
    for number in sorted(awaited):
        note = awaited[number]
        kind = kinds.setdefault(note.kind, len(kinds))
        if spans and spans[-1][1:] == [number - 1, kind, note.since]:
            spans[-1][1] = number
        else:
            spans.append([number, number, kind, note.since])
    return document | {"kinds": [kind.to_row() for kind in kinds], "awaited": spans}


@lru_cache(maxsize=16384)
def instant(text: str) -> int:
    """Microseconds since 1970 of a time as a ledger has it."""
    return microseconds(datetime.fromisoformat(text))


@lru_cache(maxsize=16384)
def name_parts(pod: str) -> tuple[str, int | None]:
    """What the names of a run's pods begin with, and the number of this one; None for a name that no run gives."""
    head, _, number = pod.rpartition(POD_SEPARATOR)
    given = bool(head) and number.isascii() and number.isdecimal() and number == str(int(number))
    return (head + POD_SEPARATOR, int(number)) if given else (pod, None)


class _Part(ApiModel):
    """What this version of the accounting needs; fields of other versions are none of its business."""

    model_config = ApiModel.model_config | {"extra": "ignore"}


_Cause = Annotated[str, patterned(r"^[^/]*(/[0-9]{1,9})?$", "a cause, with the number of a generation or without")]
"""With the number of the generation that it ended, see `attribution.cause_of`."""
_Number = Annotated[str, patterned(r"^[0-9]{1,9}$", "the number of a generation")]
_Month = Annotated[str, patterned(r"^[0-9]{4}-(0[1-9]|1[0-2])$", "a calendar month, such as 2026-11")]


class _Amounts(_Part):
    """What has a default may be absent; amounts are never null."""

    gpu_microseconds: dict[str, int]
    micros: dict[str, int]
    waste: dict[_Cause, int] = {}  # noqa: RUF012 - of a model, copied for each


class _Entry(_Amounts):
    uid: str
    node: str = ""
    stage: str = ""
    generation: int
    gpus: int
    price: str
    from_: datetime
    to: datetime
    estimated: bool


class _Group(_Amounts):
    waste: dict[_Cause, int]
    node: str
    stage: str
    gpus: int
    price: str
    from_: datetime
    to: datetime
    estimated: bool
    node_microseconds: int


class _Folded(_Amounts):
    stages: dict[str, tuple[int, int, int]] = {}  # noqa: RUF012 - of a model, copied for each
    generations: dict[_Number, int] = {}  # noqa: RUF012 - of a model, copied for each
    months: dict[_Month, int] = {}  # noqa: RUF012 - of a model, copied for each
    causes: dict[str, dict[str, int]] = {}  # noqa: RUF012 - of a model, copied for each
    groups: tuple[_Group, ...] = ()
    entries: int
    estimated: bool
    until: datetime | None = None


_Time = int | None
_RowOfBefore = tuple[int | str, int, int, int, _Time, _Time, int, _Time, _Time, int]
"""Without a node."""
_Row = tuple[int | str, int, int, int, _Time, _Time, int, _Time, _Time, int, str | None]


class _Ledger(_Part):
    pod: str
    node: tuple[str, str] = ("", "")
    kinds: list[tuple[int, str] | tuple[int, str, str]]
    pods: dict[str, _Row | _RowOfBefore]
    awaited: list[tuple[int, int, int, int]]
    entries: list[_Entry]
    folded: _Folded


def _check(ledger: _Ledger) -> None:
    known = [Kind(*kind) for kind in ledger.kinds]
    for kind in known:
        price_schedule(kind.price)
    kinds = range(len(known))
    sizes = sum(last - first + 1 for first, last, *_ in ledger.awaited)
    odd = [
        bool(implausible(ledger)),
        any(abs(number) > LARGEST for row in ledger.pods.values() for number in row if isinstance(number, int)),
        any(not 0 <= kind.gpus <= LARGEST for kind in known),
        any(row[1] not in kinds or min(row[2:4]) < 0 for row in ledger.pods.values()),
        any(not 0 <= first <= last or kind not in kinds for first, last, kind, _ in ledger.awaited),
        sizes > 2 * LARGEST_GROUP,
    ]
    if any(odd):
        raise ValueError("numbers with which nobody can calculate")


def _check_windows(document: Json) -> None:
    """Times and prices are calculated with as they were written, and more is read as a time than is one here."""
    folded = document["folded"]
    for one in (*document["entries"], *folded.get("groups", ())):
        instant(one["from"]), instant(one["to"])
        if one["price"]:
            parse_price(one["price"])
    if folded.get("until") is not None:
        instant(folded["until"])


class _TextPod(_Part):
    """A pod as version 1 wrote it."""

    pod: str
    gpus: int
    price: str
    created_at: datetime
    bound_at: datetime
    closed_through: int
    closed_until: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    gone: bool = False
    estimated: bool = False


class _TextLedger(_Part):
    pods: dict[str, _TextPod]
    entries: list[_Entry]
    folded: _Folded


def _from_texts(ledger: _TextLedger, document: Json) -> Json:
    """From version 1, which named every fact of a pod.

    Raises:
        ValueError: it cannot be settled.
    """
    if implausible(ledger):
        raise ValueError("values with which nobody can calculate")
    _check_windows(document)
    records = {uid: _record_of(pod) for uid, pod in ledger.pods.items()}
    kept = {key: value for key, value in document.items() if key != "pods"}
    return kept | {"version": VERSION} | rows_of(records, {})


def _record_of(pod: _TextPod) -> Record:
    parse_price(pod.price)
    return Record(
        pod.pod,
        Kind(pod.gpus, pod.price),
        microseconds(pod.created_at),
        microseconds(pod.bound_at),
        _optional(pod.started_at),
        _optional(pod.finished_at),
        pod.closed_through,
        _optional(pod.closed_until),
        gone=pod.gone,
        estimated=pod.estimated,
    )


def _optional(at: datetime | None) -> int | None:
    return None if at is None else microseconds(at)
