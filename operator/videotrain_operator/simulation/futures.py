"""What may become of a run: many futures that differ in their failures, each lived by the real planner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from videotrain_api.cost.forecast import StageForecast, forecast
from videotrain_api.cost.overheads import COPY_BYTES_PER_SECOND
from videotrain_api.money import parse_micros
from videotrain_api.resource.status import CostStatus, RunStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_operator.simulation.failures import DAY, Failure
from videotrain_operator.simulation.spot import PricePoint, reclaims
from videotrain_operator.simulation.virtual_run import Timing, VirtualRun

SHARES: Final = (0.1, 0.25, 0.5)
"""Of the final bill, at which the forecast is noted."""
UNCOUNTED_STEPS: Final = 100
"""Units of a stage whose work is not counted in steps."""


class Told(NamedTuple):
    """What the forecast said when a share of the final bill was spent."""

    share: float
    micros: int
    low: int
    high: int


@dataclass(kw_only=True)
class Future:
    """How one of them went."""

    phase: str
    message: str
    """Why it failed, if it did."""
    days: float
    micros: int
    goodput: float
    """Productive share of the held GPU time, 0 to 1."""
    micros_by_bucket: dict[str, int]
    gpu_microseconds_by_bucket: dict[str, int]
    restarts: dict[str, int]
    """By cause."""
    interruptions: dict[str, int]
    """Failures that hit a world, by kind."""
    steps: int
    """Of all stages, that are in the weights."""
    passes: int
    """Of the planner."""
    told: list[Told] = field(default_factory=list)


def timing_of(
    run: VideoTrainingRun,
    *,
    mfu: float | None = None,
    seconds_per_step: dict[str, float] | None = None,
    save_seconds: float | None = None,
    hours_of_video: float | None = None,
    **more: float,
) -> Timing:
    """How long the steps of a run take by its model, see `videotrain_api.cost.forecast`.

    A stage whose work nobody knows takes no time.

    Args:
        run: a valid manifest.
        mfu: model FLOPs utilisation, instead of modelled rates.
        seconds_per_step: known step times by stage.
        save_seconds: for which training stands still at a checkpoint; modelled if None.
        hours_of_video: raw videos, by which curate and encode stages are modelled.
        more: other fields of Timing.

    Raises:
        ValueError: a number is out of range, or a stage is unknown.
    """
    planned = forecast(run, mfu=mfu, seconds_per_step=seconds_per_step, hours_of_video=hours_of_video).stages
    steps = {stage.name: stage.work.steps if stage.work else UNCOUNTED_STEPS for stage in planned}
    return Timing(
        node_seconds={stage.name: _node_seconds(stage) for stage in planned},
        steps=steps,
        save_seconds={stage.name: _save_seconds(stage) if save_seconds is None else save_seconds for stage in planned},
        **more,
    )


def _node_seconds(stage: StageForecast) -> float:
    if stage.work is not None and stage.seconds_per_step:
        return stage.seconds_per_step * stage.nodes
    days = (
        stage.node_days if stage.node_days is not None else (stage.gpu_days or 0.0) * stage.nodes / max(1, stage.gpus)
    )
    return max(days * DAY / UNCOUNTED_STEPS, 0.001)


def _save_seconds(stage: StageForecast) -> float:
    return 0.0 if stage.overheads is None else stage.overheads.state_bytes / stage.gpus / COPY_BYTES_PER_SECOND


def live_future(
    run: VideoTrainingRun,
    timing: Timing,
    failures: Iterable[Failure],
    *,
    nodes: int,
    days: float,
    prices: Sequence[PricePoint] = (),
    watch: Callable[[float, RunStatus], None] | None = None,
) -> Future:
    """One of them.

    Args:
        run: as a user creates it.
        timing: how long things take.
        failures: what happens to nodes.
        nodes: of the cluster.
        days: when the simulation ends, if the run does not before.
        prices: what nodes cost, and how many there are, from when on.
        watch: told of the status after every pass, and of the seconds since the beginning.
    """
    costs: list[CostStatus] = []

    def note(second: float, status: RunStatus) -> None:
        cost = status.cost
        if cost is not None and cost.forecast and (not costs or cost.total_micros > costs[-1].total_micros):
            costs.append(cost)
        if watch is not None:
            watch(second, status)

    virtual = VirtualRun(run, timing, nodes=nodes, on_pass=note)
    virtual.reprice(prices)
    gone = reclaims(prices, nodes=nodes, days=days, notice=timing.notice)
    status = virtual.live(sorted([*failures, *gone]) if gone else failures, seconds=days * DAY)
    cost = status.cost or CostStatus(currency=run.spec.pool.currency)
    failed = next((c.message for c in status.conditions if c.type == "Failed" and c.status == "True"), "")
    held = max(1, cost.held_gpu_microseconds)
    return Future(
        phase=status.phase,
        message=failed,
        days=virtual.now / DAY,
        micros=cost.total_micros,
        goodput=cost.gpu_microseconds_by_bucket.get("productive", 0) / held,
        micros_by_bucket=cost.micros_by_bucket,
        gpu_microseconds_by_bucket=cost.gpu_microseconds_by_bucket,
        restarts=status.restarts.model_dump(),
        interruptions=virtual.interrupted,
        steps=sum(stage.step for stage in status.stages),
        passes=virtual.passes,
        told=[_told(costs, share, cost.total_micros) for share in SHARES]
        if costs and status.phase == "Succeeded"
        else [],
    )


def _told(costs: Sequence[CostStatus], share: float, total: int) -> Told:
    cost = next((each for each in costs if each.total_micros >= share * total), costs[-1])
    values = (cost.forecast, cost.forecast_low, cost.forecast_high)
    return Told(share, *(parse_micros(value or "0") for value in values))


def waste(future: Future) -> float:
    """Share of the held GPU time that checkpoints and failures took: what the interval between checkpoints decides."""
    held = max(1, sum(future.gpu_microseconds_by_bucket.values()))
    return (
        sum(future.gpu_microseconds_by_bucket.get(name, 0) for name in ("checkpoint", "lost", "stalled", "restarting"))
        / held
    )


def young_daly(mean_seconds: float, save_seconds: float) -> float:
    """Seconds from one checkpoint's begin to the next one's at which both cost least: the root of twice the product.

    Args:
        mean_seconds: between two failures of the world.
        save_seconds: for which training stands still at a checkpoint.
    """
    return math.sqrt(2 * mean_seconds * save_seconds)


def best_interval(swept: Sequence[tuple[float, float]]) -> float | None:
    """The interval at which waste is least, by least squares of a / interval + b * interval + c.

    Args:
        swept: seconds from the begin of a checkpoint to that of the next, and the share that was wasted with each.

    Returns:
        None with fewer than three intervals, or if waste does not have its least between zero and infinity.
    """
    if len({interval for interval, _ in swept}) < 3:
        return None
    rows = [(1 / interval, interval, 1.0) for interval, _ in swept]
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(3)] for i in range(3)]
    right = [sum(row[i] * share for row, (_, share) in zip(rows, swept, strict=True)) for i in range(3)]
    whole = _determinant(matrix)
    falling, rising = (_determinant(_replaced(matrix, column, right)) / whole for column in (0, 1))
    return math.sqrt(falling / rising) if falling > 0 and rising > 0 else None


def _replaced(matrix: Sequence[Sequence[float]], column: int, by: Sequence[float]) -> list[list[float]]:
    return [[*row[:column], value, *row[column + 1 :]] for row, value in zip(matrix, by, strict=True)]


def _determinant(m: Sequence[Sequence[float]]) -> float:
    return (
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )


def quantiles(values: Iterable[float]) -> tuple[float, float, float]:
    """The values below which a tenth, a half and nine tenths lie."""
    found = sorted(values)
    at = (found[min(len(found) - 1, int(share * len(found)))] for share in (0.1, 0.5, 0.9))
    low, mid, high = at
    return low, mid, high
