"""Loss and throughput curves, thin enough to draw whatever the length of the run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from videotrain.report.workdir import GenerationRecords, RunRecords
from videotrain_api.records import StepRecord
from videotrain_api.schema import Json

MOST_POINTS = 2000
"""Points of one curve; a screen shows no more."""
SMOOTHING_SHARE = 0.04
"""The smoothed loss averages over this share of the steps."""
Point = tuple[float, float]


def stage_curves(stage: str, records: RunRecords) -> Json | None:
    """Everything that a stage's figure shows; None for a stage without a loss."""
    kept = records.kept_steps(stage)
    losses = [(float(r.step), r.loss) for r in kept if r.loss is not None]
    if not losses:
        return None
    window = max(1, round(len(losses) * SMOOTHING_SHARE))
    return {
        "stage": stage,
        "loss": _columns(thin(losses)),
        "smooth": _columns(thin(smooth(losses, window))),
        "lost": [_columns(thin(branch)) for branch in _lost_branches(stage, records)],
        "throughput": [_throughput(g) for g in records.generations if g.stage == stage and g.steps],
        "changes": [[g.number, g.steps[0].step] for g in records.generations if g.stage == stage and g.steps],
    }


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points that keep the extremes: of every stretch the lowest and the highest, in order."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    kept = [points[0]]
    for number in range(stretches):
        stretch = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over the window of points around each one, fewer at the ends."""
    before = [0.0]
    for _, value in points:
        before.append(before[-1] + value)
    half, last = window // 2, len(points)
    smoothed = []
    for i, (x, _) in enumerate(points):
        low, high = max(0, i - half), min(last, i + half + 1)
        smoothed.append((x, (before[high] - before[low]) / (high - low)))
    return smoothed


def samples_per_second(steps: Sequence[StepRecord]) -> list[Point]:
    """(step, samples per second) over the time from step to step, averaged so that few enough points are left."""
    stride = max(1, len(steps) // (MOST_POINTS // 2))
    points = []
    for start in range(0, len(steps), stride):
        group = steps[start : start + stride]
        seconds = (group[-1].finished_at - group[0].started_at).total_seconds()
        if seconds > 0:
            points.append((float(group[-1].step), sum(r.samples for r in group) / seconds))
    return points


def lost_span(generation: GenerationRecords, lost_from: int | None) -> tuple[datetime, datetime] | None:
    """When the steps of a generation ran that were done again; None if there are none."""
    steps = [s for s in generation.steps if lost_from is not None and s.step > lost_from]
    return (steps[0].started_at, steps[-1].finished_at) if steps else None


def _throughput(generation: GenerationRecords) -> Json:
    world = generation.started.world_size if generation.started else None
    points = samples_per_second(generation.steps)
    return {"generation": generation.number, "workers": world, **_columns(points)}


def _lost_branches(stage: str, records: RunRecords) -> list[list[Point]]:
    kept = {(r.generation, r.step) for r in records.kept_steps(stage)}
    branches = []
    for generation in records.generations:
        found = [s for s in generation.steps if s.stage == stage and (s.generation, s.step) not in kept]
        branch = [(float(s.step), s.loss) for s in found if s.loss is not None]
        if branch:
            branches.append(branch)
    return branches


def _columns(points: Sequence[Point]) -> Json:
    return {"x": [p[0] for p in points], "y": [float(f"{p[1]:.5g}") for p in points]}
