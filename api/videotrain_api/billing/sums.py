"""What several bills come to, by team, namespace, run, stage, node, cause or bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, get_args

from videotrain_api.billing.document import BillRow, RunBill, within
from videotrain_api.vocabulary import Bucket

By = Literal["team", "namespace", "run", "stage", "node", "cause", "bucket"]
CHOICES: Final = get_args(By)
PRODUCTIVE: Final = "productive"
UNKNOWN: Final = "unknown"


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
    }
    return {names[by]: row.total}
