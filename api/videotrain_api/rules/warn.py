"""What a run may ask for and hardly means: told by `videotrain check` and the webhook, and never refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from videotrain_api.config.aspect import side_of
from videotrain_api.resource.stages import Bucket, SampleTask, TrainingSamples
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Problem


def warnings(run: VideoTrainingRun) -> list[Problem]:
    """Each with the field to change.

    Args:
        run: that can be accepted.
    """
    return [*_unsaved(run), *_untrained(run)]


def _unsaved(run: VideoTrainingRun) -> Iterator[Problem]:
    """Stages that save nothing before they end."""
    policy = run.spec.checkpoint
    if policy.every_seconds is not None:
        return
    lengths = {stage.name: task.steps for stage in run.spec.stages if (task := stage.train or stage.autoencoder)}
    unsaved = [f"{name!r} ({steps})" for name, steps in lengths.items() if 1 < steps <= policy.every_steps]
    if unsaved:
        told = (
            f"has at least the steps of {_listed(unsaved)}: nothing is saved before the end, and a restart begins anew"
        )
        yield Problem("spec.checkpoint.everySteps", policy.every_steps, f"{told}; lower it, or set everySeconds")


def _untrained(run: VideoTrainingRun) -> Iterator[Problem]:
    """Videos that are larger or longer than all that the run's own model has seen by then."""
    if run.spec.model.weights is not None:
        return  # nobody here knows what those were trained on
    seen: list[Bucket] = []
    for index, stage in enumerate(run.spec.stages):
        path = f"spec.stages[{index}].{stage.task}"
        if stage.train is not None:
            seen += stage.train.buckets
            if stage.train.samples is not None:
                yield from _beyond(f"{path}.samples", stage.name, stage.train.samples, seen)
        if stage.sample is not None and seen:
            yield from _beyond(path, stage.name, stage.sample, seen)


def _beyond(path: str, name: str, drawn: SampleTask | TrainingSamples, seen: Sequence[Bucket]) -> Iterator[Problem]:
    side = side_of(drawn.resolution)
    if any(side <= side_of(row.resolution) and drawn.frames <= row.frames for row in seen):
        return
    largest = max(seen, key=lambda row: side_of(row.resolution) ** 2 * row.frames)
    trained = f"the largest row that is trained before is {largest.resolution} with {largest.frames} frames"
    told = f"stage {name!r} draws {drawn.resolution} with {drawn.frames} frames, and {trained}"
    larger = side > max(side_of(row.resolution) for row in seen)
    field, value = ("resolution", drawn.resolution) if larger else ("frames", drawn.frames)
    yield Problem(f"{path}.{field}", value, f"{told}: the model has never seen that; expect poor videos")


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
