"""Measured speed: seconds per step, seconds per restart, seconds left."""

from __future__ import annotations

from typing import Final

from videotrain_api.resource.status import GenerationStatus
from videotrain_operator.planner.draft import Draft

DEFAULT_RESTART_SECONDS: Final = 30.0
"""Until a restart was measured."""
RESTARTS_MEASURED: Final = 5


def seconds_per_step(generation: GenerationStatus) -> float | None:
    """Mean over a generation's steps but the first, which compiles and warms up; None before the third."""
    return generation.progress.seconds_per_step(least=2) if generation.progress is not None else None


def step_seconds(draft: Draft, members: int) -> float | None:
    """Seconds per step of the current stage in a world of so many nodes.

    The newest generation that was measured counts; another size is scaled, as if every node helped alike.
    """
    stage = draft.stage()
    for generation in reversed(draft.status.generations):
        if stage is None or generation.stage != stage.name:
            continue
        measured = seconds_per_step(generation)
        if measured is not None:
            return measured * len(generation.members) / max(1, members)
    return None


def restart_seconds(draft: Draft) -> float:
    """From a roster to the first step, mean of the last ones."""
    starts = [
        (g.progress.first_step_at - g.created_at).total_seconds()
        for g in draft.status.generations
        if g.progress is not None and g.progress.first_step_at is not None
    ]
    newest = starts[-RESTARTS_MEASURED:]
    return sum(newest) / len(newest) if newest else DEFAULT_RESTART_SECONDS


def remaining_seconds(draft: Draft, members: int) -> float | None:
    """Until the current stage is done with so many nodes; None while nothing was measured."""
    each, stage = step_seconds(draft, members), draft.stage()
    if each is None or stage is None or stage.total_steps is None:
        return None
    return max(0, stage.total_steps - stage.step) * each
