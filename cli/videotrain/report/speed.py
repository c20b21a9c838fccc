"""Where the time of a stage's steps went, and which ranks were slowest, from the records of its workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from videotrain.report.workdir import RunRecords
from videotrain_api.records import StepRecord
from videotrain_api.schema import Json

MOST_RANKS = 8
"""Ranks of one world that are listed as slowest."""
PARTS = ("data", "forward", "backward", "communication", "optimizer", "checkpoint")
"""Of a step, in the order in which it goes through them; `rest` is what is left of its time."""


def stage_speed(stage: str, records: RunRecords) -> Json | None:
    """Seconds by part, work by the three ways of counting it, memory, slowest ranks, and what an encode stage stored;
    None without such records.
    """
    steps = records.kept_steps(stage)
    if all(step.forward_us is None for step in steps):
        return None
    seconds = {part: sum(_microseconds(step, part) for step in steps) / 1e6 for part in PARTS}
    total = sum((step.finished_at - step.started_at) / timedelta(seconds=1) for step in steps)
    return {
        "steps": len(steps),
        "seconds": seconds | {"rest": max(0.0, total - sum(seconds.values()))},
        "model_flops": sum(step.model_flops for step in steps),
        "hardware_flops": _sum([step.hardware_flops for step in steps]),
        "useful_flops": _sum([step.useful_flops for step in steps]),
        "memory_bytes": max((step.memory_bytes for step in steps if step.memory_bytes is not None), default=None),
        "encoded": _encoded(steps, total),
        "slowest": [entry for one in records.generations if one.stage == stage for entry in _slowest(one.steps)],
    }


def _encoded(steps: Sequence[StepRecord], seconds: float) -> Json | None:
    """Clips and bytes of an encode stage."""
    stored = [step.stored_bytes for step in steps if step.stored_bytes is not None]
    clips = sum(step.samples for step in steps)
    if not stored or not clips or not seconds:
        return None
    return {"clips": clips, "clips_per_second": clips / seconds, "bytes_per_clip": sum(stored) / clips}


def _microseconds(step: StepRecord, part: str) -> int:
    name = {"data": "data_stall_us", "checkpoint": "checkpoint_us"}.get(part, f"{part}_us")
    return getattr(step, name) or 0


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _slowest(steps: Sequence[StepRecord]) -> list[Json]:
    """Ranks of one world, those first that took longest to compute a micro-batch most often."""
    ratios: defaultdict[int, list[float]] = defaultdict(list)
    for step in steps:
        if step.slowest_rank is not None:
            ratios[step.slowest_rank].append(step.straggler_ratio or 0.0)
    judged = sum(map(len, ratios.values()))
    often = sorted(ratios.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_RANKS]
    return [
        {
            "generation": steps[0].generation,
            "rank": rank,
            "steps": len(found),
            "share": round(len(found) / judged, 4),
            "ratio": round(sum(found) / len(found), 4),
        }
        for rank, found in often
    ]
