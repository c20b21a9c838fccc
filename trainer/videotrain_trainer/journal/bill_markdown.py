"""A bill as text for trackers that show no files."""

from __future__ import annotations

from collections.abc import Iterable

from videotrain_api.billing.document import RunBill
from videotrain_api.money import format_micros

_MICROSECONDS_PER_HOUR = 3.6e9


def bill_markdown(bill: RunBill) -> str:
    """What the run cost, by stage, by what the time was used for, and by why money bought no progress: tables."""
    estimated = ", estimated" if bill.estimated else ""
    total = f"**{bill.namespace}/{bill.run}** cost **{format_micros(bill.total_micros)} {bill.currency}**{estimated}"
    held = ((one.name, one.held_gpu_microseconds, one.total_micros) for one in bill.stages)
    used = (
        (name, bill.gpu_microseconds_by_bucket.get(name, 0), micros)
        for name, micros in bill.micros_by_bucket.items()
        if micros
    )
    parts = [total, _table(("stage", "GPU-hours", bill.currency), held)]
    parts.append(_table(("used for", "GPU-hours", bill.currency), used))
    if bill.waste_micros_by_cause:
        causes = bill.waste_micros_by_cause.items()
        lines = [f"| why money bought no progress | {bill.currency} |", "|---|---:|"]
        parts.append("\n".join([*lines, *(f"| {cause} | {format_micros(micros)} |" for cause, micros in causes)]))
    return "\n\n".join(parts)


def _table(headings: tuple[str, str, str], rows: Iterable[tuple[str, int, int]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|---|---:|---:|"]
    for name, microseconds, micros in rows:
        lines.append(f"| {name} | {microseconds / _MICROSECONDS_PER_HOUR:.4f} | {format_micros(micros)} |")
    return "\n".join(lines)
