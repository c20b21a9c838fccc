"""What train stages take of each source, and what that costs: arithmetic of weights, before any data is counted."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from videotrain_api.cost.forecast import CostForecast
from videotrain_api.money import format_micros, round_half_up
from videotrain_api.resource.sources import SourceWeights
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ApiModel


class SourceShare(ApiModel):
    """A source in a train stage. What depends on how many samples it has is None."""

    stage: str
    source: str
    form: str
    weights: list[float]
    """Its weight in each piece of the stage, one piece if they do not change; empty without weights."""
    share: float | None
    """Of the stage's samples."""
    cost: str | None
    """This share of the cost of the stage's steps; decimal string in the run's currency."""


def source_shares(run: VideoTrainingRun, planned: CostForecast) -> Iterator[SourceShare]:
    """A row for each source of each train stage.

    Args:
        run: accepted.
        planned: its forecast.
    """
    sources = run.spec.dataset.sources
    usual = {source.name: source.weight for source in sources if source.weight is not None}
    for stage, expected in zip(run.spec.stages, planned.stages, strict=True):
        if stage.train is None:
            continue
        pieces = stage.train.source_weights or ([SourceWeights(weights=usual)] if usual else [])
        taken = dict.fromkeys((source.name for source in sources), Fraction(0))
        start = 0
        for piece in pieces:
            end = min(piece.until_step or stage.train.steps, stage.train.steps)
            total = sum(Fraction(weight) for weight in piece.weights.values())
            for name, weight in piece.weights.items():
                taken[name] += max(0, end - start) * Fraction(weight) / total
            start = max(start, end)
        for source in sources:
            share, micros = taken[source.name] / stage.train.steps, expected.cost_micros
            yield SourceShare(
                stage=stage.name,
                source=source.name,
                form=source.form,
                weights=[piece.weights[source.name] for piece in pieces],
                share=float(share) if pieces else None,
                cost=format_micros(round_half_up(share * micros)) if pieces and micros is not None else None,
            )
