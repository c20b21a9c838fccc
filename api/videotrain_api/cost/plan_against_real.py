"""What a stage was to cost before its run began, and why it cost something else, in money that sums exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from videotrain_api.cost.forecast import StageForecast, forecast, gpu_cost_micros
from videotrain_api.money import cost_micros, parse_micros, split
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import Bucket

PRODUCTIVE: Final = Bucket.PRODUCTIVE.value
UNKNOWN: Final = "unknown"


class PlannedStage(NamedTuple):
    """A stage as its model has it, at the most nodes that it may use; money in micros."""

    seconds_per_step: float
    nodes: int
    step_count: int
    price: int
    """Of an hour of a GPU, or of a node without."""
    steps: int
    start: int
    checkpoint: int
    failures: int

    @property
    def total(self) -> int:
        """With all that comes beside the steps."""
        return self.steps + self.start + self.checkpoint + self.failures

    @property
    def node_seconds_per_step(self) -> float:
        """Of a step."""
        return self.seconds_per_step * self.nodes

    @property
    def seconds(self) -> float:
        """Of the whole stage, from when its nodes are there."""
        return self.seconds_per_step * self.step_count * (self.total / max(1, self.steps))


def planned_stages(run: VideoTrainingRun) -> dict[str, PlannedStage]:
    """By name, without those whose work nobody can count before they run.

    Raises:
        ManifestError: a preset is unknown or incomplete.
    """
    return {stage.name: planned for stage in forecast(run).stages if (planned := _planned(stage)) is not None}


def _planned(stage: StageForecast) -> PlannedStage | None:
    if stage.work is None or stage.seconds_per_step is None:
        return None
    beside = stage.overheads
    start, checkpoint, failures = (
        gpu_cost_micros(3600 * hours, 1, stage.price)
        for hours in ((beside.starts, beside.checkpoints, beside.failures) if beside else (0.0, 0.0, 0.0))
    )
    price, steps = parse_micros(stage.price), stage.cost_micros or 0
    return PlannedStage(
        stage.seconds_per_step, stage.nodes, stage.work.steps, price, steps, start, checkpoint, failures
    )


def differences(
    planned: PlannedStage, spent: int, held: int, by_cause: Mapping[str, int], steps: int
) -> dict[str, int]:
    """Why a stage cost other than planned: micros that sum to the difference, exactly; what is nothing is left out.

    `price` is what another price did to all of it; the rest is told at the planned price. `steps`: fewer were made.
    `rate`: a step took other node time. `start`, `checkpoint`, `data`, `idle`: waiting. `failures`: what ended worlds,
    the steps that were lost with them and the starts after them.

    Args:
        planned: as its model has it.
        spent: on the stage, micros.
        held: time of GPUs, or of nodes without, microseconds.
        by_cause: `spent` by what was productive and by why money bought no progress.
        steps: that are done and kept.
    """
    at_price = cost_micros(held, planned.price)
    parts = split(at_price, by_cause if sum(by_cause.values()) else {UNKNOWN: 1})
    made = planned.steps * min(steps, planned.step_count) // max(1, planned.step_count)
    waits = {name: parts.pop(name, 0) for name in ("start", "checkpoint", "data", "idle")}
    found = {
        "price": spent - at_price,
        "steps": made - planned.steps,
        "rate": parts.pop(PRODUCTIVE, 0) - made,
        "start": waits["start"] - planned.start,
        "checkpoint": waits["checkpoint"] - planned.checkpoint,
        "data": waits["data"],
        "idle": waits["idle"],
        "failures": sum(parts.values()) - planned.failures,
    }
    return {name: micros for name, micros in found.items() if micros}
