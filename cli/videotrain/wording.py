"""Numbers and durations as people read them, shared by screens, tables and the report."""

from __future__ import annotations

from decimal import Decimal

GPU_NOTE = "On one machine a worker process stands for a GPU in this bill."
BUCKET_LABELS = {
    "productive": "productive",
    "starting": "starting",
    "restarting": "restarting",
    "checkpoint": "checkpoint stall",
    "dataStall": "data stall",
    "stalled": "stalled",
    "lost": "lost (done again)",
    "draining": "draining",
    "idle": "idle",
}
"""Buckets of GPU time in the order in which they are shown."""

BUCKET_MEANINGS = {
    "productive": "Steps that are in the weights.",
    "starting": "From the pod's node to the first step of its first world.",
    "restarting": "From the end of one world to the first step of the next.",
    "checkpoint": "Training stood still for a checkpoint.",
    "dataStall": "Training waited for samples.",
    "stalled": "The step counter stood still before a hang was noticed.",
    "lost": "Steps that no checkpoint held and that were done again.",
    "draining": "Finishing the step and saving before leaving.",
    "idle": "Held, but not a member of any world.",
}

CAUSE_MEANINGS = {
    "start": "From nodes to the first step of a stage.",
    "idle": "Held, but not a member of any world.",
    "data": "Training waited for samples.",
    "checkpoint": "Training stood still for a checkpoint.",
    "application": "Faults of the program: lost steps, and the way to the next first step.",
    "infrastructure": "Lost nodes, failed GPUs, storage outages: the same.",
    "preemption": "Reclaimed or drained nodes: the same.",
    "hang": "Steps that stood still: the same.",
    "drained": "The world was changed on purpose: saving, and the way to the next first step.",
    "completed": "From the end of a stage to the next one.",
    "unknown": "What ended the world is not on record.",
}
"""Why money bought no progress."""


def duration(seconds: float) -> str:
    """Seconds for people: `75.2` becomes `1m15s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{left:02d}s"


def money(micros: int, currency: str) -> str:
    """Integer micros as an amount with enough digits to see small ones."""
    amount = Decimal(micros) / 1_000_000
    if amount >= 1000:
        return f"{amount:,.0f} {currency}"
    places = 2 if amount >= 1 else 4 if amount >= Decimal("0.01") else 6
    return f"{amount:,.{places}f} {currency}"


def exact(micros: int) -> str:
    """Integer millionths as a decimal string with all six places, so that a column of them adds up."""
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"


_PREFIXES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def compact(value: float) -> str:
    """`12345` becomes `12.3k`, with SI prefixes up to zetta."""
    for limit, prefix in _PREFIXES:
        if abs(value) >= limit:
            scaled = value / limit
            return f"{scaled:.3g}{prefix}" if scaled < 999.5 else f"{scaled:,.0f}{prefix}"
    return f"{value:.3g}"
