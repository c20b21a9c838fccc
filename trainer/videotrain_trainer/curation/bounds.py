"""Which clips are kept: bounds on scores that the catalogue holds, so that they change without a video being read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """One bound of the curate task."""

    score: str
    """Column of the catalogue."""
    field: str
    """Of CurateTask."""
    side: Literal["least", "most"]
    reason: str
    """Why a clip beyond it is dropped."""
    noun: str
    """What the score is called in messages."""

    def value(self, task: CurateTask) -> float | None:
        """The bound as the task has it."""
        found: float | None = getattr(task, self.field)
        return found

    def holds(self, row: Mapping[str, Any], task: CurateTask) -> bool:
        """Whether a clip of the catalogue stays; what was not measured does, and a picture whatever does not move."""
        limit, score = self.value(task), row.get(self.score)
        if score is None or limit is None or (row["frames"] == 1 and self.score in MOVING_ONLY):
            return True
        return bool(score >= limit if self.side == "least" else score <= limit)


BOUNDS = (
    Bound("motion", "min_motion", "least", "still", "motion"),
    Bound("change", "min_change", "least", "still", "change"),
    Bound("motion", "max_motion", "most", "too-fast", "motion"),
    Bound("blur", "min_blur", "least", "blurred", "sharpness"),
    Bound("jitter", "max_jitter", "most", "shaken", "jitter"),
    Bound("border", "max_border", "most", "borders", "share of black borders"),
    Bound("text", "max_text", "most", "text", "share of text"),
    Bound("aesthetic", "min_aesthetic", "least", "unappealing", "aesthetic score"),
    Bound("watermark", "max_watermark", "most", "watermark", "share of still marks"),
)
"""In the order in which they are told; the first that does not hold is the reason. How a blurred picture is shaken is
hard to tell, so that comes last of the two; a title that stands still is text before it is a mark."""
MOVING_ONLY = frozenset({"motion", "change", "jitter"})
"""Scores that a picture has none of."""
SCORE_REASONS = frozenset(bound.reason for bound in BOUNDS)
LOOSE_FIELDS = frozenset(
    {bound.field for bound in BOUNDS} | {"dedup_distance", "dedup_cosine", "drop_sources", "captions"}
)
"""Fields of CurateTask that need no video to be read again when they change."""


def drop_by(row: Mapping[str, Any], task: CurateTask) -> dict[str, Any] | None:
    """Why a clip is dropped, as columns of the catalogue: `reason`, `detail`, `value`, `bound`; None if it stays."""
    for bound in BOUNDS:
        if bound.holds(row, task):
            continue
        score, limit = row[bound.score], bound.value(task)
        detail = f"{bound.noun} {score:.3g}, at {bound.side} {limit:g}"
        return {"reason": bound.reason, "detail": detail, "value": score, "bound": limit}
    return None


def refuse_unmeasured(rows: Iterable[Mapping[str, Any]], task: CurateTask) -> None:
    """Of a bound that somebody set, clips must have the score: else it would drop nothing, and nobody would know.

    Raises:
        ConfigError: `min_aesthetic` is set, and no row has that score.
    """
    if task.min_aesthetic is not None and all(row.get("aesthetic") is None for row in rows):
        raise ConfigError(
            f"curate.minAesthetic: {task.min_aesthetic:g}: no clip has an aesthetic score; it needs imageModel with an "
            "aesthetic predictor, in imageModel.head or stored with the tower, when clips are curated"
        )
