"""What of a run's stages may be edited once they were frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from videotrain_api.config.fork import continuation_problems
from videotrain_api.config.resolve import resolve
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.mutability import FROZEN_ANEW, attributes
from videotrain_api.resource.stages import TASKS
from videotrain_api.resource.trainrun import VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import Json, Problem

_FROZEN_ANEW: Final = attributes(VideoTrainingRunSpec, FROZEN_ANEW)


class Reached(NamedTuple):
    """How far a stage is."""

    state: str
    """As in status.stages."""
    saved_step: int
    """Of its newest checkpoint."""


def edited_spec(frozen: VideoTrainingRunSpec, now: VideoTrainingRunSpec) -> VideoTrainingRunSpec:
    """The frozen spec with what its stages do, and the checkpoint policy, as they stand now."""
    present = {stage.name: stage for stage in now.stages}
    stages = [
        stage.model_copy(update={task: getattr(present[stage.name], task) for task in TASKS})
        if stage.name in present and present[stage.name].task == stage.task
        else stage
        for stage in frozen.stages
    ]
    changes: dict[str, Any] = {name: getattr(now, name) for name in _FROZEN_ANEW}
    return frozen.model_copy(update=changes | {"stages": stages})


def edit_problems(before: VideoTrainingRun, after: VideoTrainingRun, reached: Mapping[str, Reached]) -> list[Problem]:
    """Why stages cannot be edited: one that is complete stays what it was, and one that has begun keeps its order of
    samples.

    Args:
        before: as it is frozen.
        after: the same with other stages; both can be resolved.
        reached: by name of the stage; one that is not there has not begun.
    """
    configs = zip(resolve(before), resolve(after), strict=True)
    return [
        problem
        for index, (old, new) in enumerate(configs)
        for problem in _problems(f"spec.stages[{index}]", old, new, reached.get(old.stage.name, Reached("Pending", 0)))
    ]


def _problems(path: str, old: StageConfig, new: StageConfig, reached: Reached) -> Iterator[Problem]:
    name = old.stage.name
    if reached.state == "Pending":
        return
    trains = old.stage.task in ("train", "autoencoder")
    if reached.state == "Running" and trains:
        yield from (
            Problem(f"{path}.{each.path}", each.value, each.message) for each in continuation_problems(old, new)
        )
        steps = new.stage.total_steps or 0
        if steps != old.stage.total_steps and steps <= reached.saved_step:
            allowed = f"{reached.saved_step} are done and saved; allowed: more than that"
            yield Problem(f"{path}.{old.stage.task}.steps", steps, allowed)
    elif _result(old) != _result(new):
        state = "is complete" if reached.state == "Succeeded" else "has begun"
        allowed = f"stage {name!r} {state}, and what it makes would be another: fork the run from this stage instead"
        yield Problem(f"{path}.{old.stage.task}", "(changed)", allowed)


def _result(config: StageConfig) -> Json:
    """What decides what a stage makes."""
    return {key: value for key, value in config.to_wire().items() if key != "checkpoint"}
