"""What several bills come to, by team, namespace, run, stage, node, cause, bucket or source of the samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, get_args

from videotrain_api.billing.document import BillRow, RunBill, within
from videotrain_api.money import split
from videotrain_api.vocabulary import Bucket

By = Literal["team", "namespace", "run", "stage", "node", "cause", "bucket", "source"]
CHOICES: Final = get_args(By)
PRODUCTIVE: Final = "productive"
UNKNOWN: Final = "unknown"
Taken = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Samples that went into the weights, by uid of the run, stage and source."""


@dataclass
class Line:
    """One line of a table of bills; lines of a currency sum to what was spent in it."""

    currency: str
    name: str
    """Of the team, the node and so on; empty if it is not known."""
    runs: set[str] = field(default_factory=set)
    """Uids."""
    gpu_microseconds: int = 0
    node_microseconds: int = 0
    micros: int = 0
    productive_micros: int = 0
    estimated: bool = False


def rows_within(
    bills: Iterable[RunBill], since: datetime | None, until: datetime | None
) -> Iterable[tuple[RunBill, BillRow]]:
    """The rows of all bills between two times."""
    for bill in bills:
        for row in bill.rows:
            part = within(row, since, until)
            if part is not None:
                yield bill, part


def shared_by_source(rows: Iterable[tuple[RunBill, BillRow]], taken: Taken) -> Iterable[tuple[RunBill, BillRow]]:
    """Each row of a stage whose samples are told apart, in parts by its samples; others as they are. Amounts of the
    parts sum to those of the row exactly.
    """
    for bill, row in rows:
        samples = taken.get(bill.uid, {}).get(row.stage, {})
        if not any(samples.values()):
            yield bill, row
            continue
        nodes = split(row.node_microseconds, samples)
        gpus, micros, waste = (
            _split_each(amounts, samples) for amounts in (row.gpu_microseconds, row.micros, row.waste)
        )
        for name in samples:
            changes = {"source": name, "node_microseconds": nodes[name]}
            parts = {"gpu_microseconds": gpus[name], "micros": micros[name], "waste": waste[name]}
            yield bill, row.model_copy(update=changes | parts)


def _split_each(amounts: Mapping[str, int], weights: Mapping[str, int]) -> dict[str, dict[str, int]]:
    shares = {key: split(amount, weights) for key, amount in amounts.items()}
    return {name: {key: share[name] for key, share in shares.items()} for name in weights}


def summed(rows: Iterable[tuple[RunBill, BillRow]], by: By) -> list[Line]:
    """The rows in lines, dearest first; a line for each currency, since nobody may add them up."""
    lines: dict[tuple[str, str], Line] = {}
    for bill, row in rows:
        for name, micros in _shares(bill, row, by).items():
            line = lines.setdefault((bill.currency, name), Line(bill.currency, name))
            line.runs.add(bill.uid)
            line.micros += micros
            line.estimated = line.estimated or row.estimated
            if by == "bucket":
                line.gpu_microseconds += row.gpu_microseconds.get(name, 0)
            if by not in ("cause", "bucket"):
                line.gpu_microseconds += sum(row.gpu_microseconds.values())
                line.node_microseconds += row.node_microseconds
                line.productive_micros += row.micros.get(Bucket.PRODUCTIVE.value, 0)
    return sorted(lines.values(), key=lambda line: (line.currency, -line.micros, line.name))


def _shares(bill: RunBill, row: BillRow, by: By) -> Mapping[str, int]:
    if by == "bucket":
        return row.micros
    if by == "cause":
        found = {PRODUCTIVE: row.micros[PRODUCTIVE]} if PRODUCTIVE in row.micros else {}
        found |= row.waste
        untold = row.total - sum(found.values())  # of a window that an operator closed before it noted causes
        return found | {UNKNOWN: found.get(UNKNOWN, 0) + untold} if untold else found
    names: dict[By, str] = {
        "team": bill.team,
        "namespace": bill.namespace,
        "run": f"{bill.namespace}/{bill.run}",
        "stage": row.stage,
        "node": row.node,
        "source": row.source,
    }
    return {names[by]: row.total}
