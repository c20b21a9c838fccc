"""Who was in the world when: one bar per pod and generation, in three shades of what it did."""

from __future__ import annotations

from datetime import datetime

from videotrain.report.curves import lost_span
from videotrain.report.workdir import RunRecords
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.schema import Json


def timeline(run: Json, status: RunStatus, records: RunRecords, end: datetime | None) -> Json | None:
    """Bars, rows and changes of the world; None if no pod was ever in one.

    Args:
        run: the VideoTrainingRun.
        status: its status.
        records: what its workers wrote.
        end: where bars end whose generation is not over.
    """
    if not status.generations:
        return None
    prefix = f"{run['metadata']['name']}-"
    pods = sorted({pod for g in status.generations for pod in g.members}, key=_natural_key)
    return {
        "rows": [pod.removeprefix(prefix) for pod in pods],
        "bars": [bar for g in status.generations for bar in _bars(g, prefix, records, end)],
        "changes": [_change(g) for g in status.generations],
    }


def _natural_key(pod: str) -> tuple[str, int]:
    head = pod.rstrip("0123456789")
    return head, int(pod[len(head) :] or 0)


def _bars(generation: GenerationStatus, prefix: str, records: RunRecords, end: datetime | None) -> list[Json]:
    over = generation.ended_at or end or generation.created_at
    common = {"generation": generation.number, "stage": generation.stage, "reason": generation.reason}
    spans = [
        {"kind": kind, "from": _milliseconds(start), "to": _milliseconds(stop)}
        for kind, start, stop in _segments(generation, records, over)
    ]
    rows = [pod.removeprefix(prefix) for pod in generation.members]
    return [{**common, **span, "row": row} for row in rows for span in spans]


def _segments(
    generation: GenerationStatus, records: RunRecords, over: datetime
) -> list[tuple[str, datetime, datetime]]:
    """(starting | work | lost, from, to), one after another from the roster to the end of the generation."""
    left, progress = records.generation(generation.number), generation.progress
    first = left.steps[0].started_at if left and left.steps else progress.started_at if progress else None
    first = min(first or over, over)
    lost = lost_span(left, generation.lost_from_step) if left else None
    kept_end = min(lost[0], over) if lost else over
    marks = [("starting", generation.created_at, first), ("work", first, kept_end)]
    if lost:
        marks.append(("lost", kept_end, over))
    return [mark for mark in marks if mark[2] > mark[1]]


def _change(generation: GenerationStatus) -> Json:
    return {
        "generation": generation.number,
        "at": _milliseconds(generation.created_at),
        "stage": generation.stage,
        "reason": generation.reason,
        "workers": generation.world_size,
    }


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)
