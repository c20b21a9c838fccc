"""What a run will have cost: what is spent, and what is left of each stage by what was measured.

A stage that has made steps goes on as it did. A later one takes the node time that its model says (`cost.forecast`:
its FLOPs, rows, nodes and kernels), times how much longer than their models the stages took that were measured. Starts,
checkpoints, failures and nodes without work are added as they were seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple
from weakref import ref

from videotrain_api.cost.overheads import FAILURES_PER_1000_GPU_DAYS
from videotrain_api.cost.plan_against_real import PlannedStage, planned_stages
from videotrain_api.money import format_micros
from videotrain_api.resource.stages import Stage, node_counts
from videotrain_api.resource.status import ExpectedStage, StageStatus
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds, pool_of
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import Bucket
from videotrain_operator.accounting.ledger import Bill
from videotrain_operator.accounting.money import parse_price
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.rates import restart_seconds

QUANTILE: Final = 1.2816
"""Standard deviations on each side of an interval that holds 80 % of a normal distribution."""
BETWEEN_STAGES: Final = 0.2
"""Deviation of the logarithm of measured over modelled step time among stages of one task: the three of the published
recipe took 3.5, 4.5 and 4.9 times as long as modelled."""
BETWEEN_TASKS: Final = 0.7
"""The same for a stage of a task of which nothing was measured yet. Assumed."""
BETWEEN_STEPS: Final = 0.5
"""Deviation of a step's time over its mean, since rows of a bucket table differ. Assumed."""
DRIFT: Final = 0.01
"""How far the mean of a stage's later steps may be off, however many were measured. Assumed."""
LEAST_STEPS: Final = 2
"""Steps after the first by which a stage counts as measured."""
DAY: Final = 86_400.0
WASTED: Final = (Bucket.LOST, Bucket.RESTARTING, Bucket.STALLED, Bucket.DRAINING)
Source = Literal["spent", "measured", "modelled", "unknown"]


class Measured(NamedTuple):
    """What a stage's steps took, as far as its generations are remembered."""

    steps: int
    node_seconds: float
    """Of one step, without the wait for checkpoints."""
    save_seconds: float
    """For which steps waited per checkpoint."""


class Forecast(NamedTuple):
    """The expected bill, micros, and the interval that it should be in four times of five."""

    micros: int
    low: int
    high: int
    stages: list[ExpectedStage]


@dataclass
class _Rest:
    """What is left of the stages, micros."""

    micros: float = 0.0
    variance: float = 0.0
    """Of what was measured."""
    modelled: float = 0.0
    """Part of `micros` that only models tell of."""
    of_models: float = 0.0
    """That part times the deviation of its logarithm, which all later stages share: their models may be wrong in
    another way than those of measured ones."""
    gpu_days: float = 0.0
    """Of nodes, where they have no GPUs."""
    failure: float = 0.0
    """Micros of one failure, weighed by gpu_days."""


@dataclass(frozen=True)
class _Question:
    """Which run at which generation; equal ones have the same models."""

    uid: str | None
    generation: int | None
    hashes: tuple[str, ...]
    run: ref[VideoTrainingRun] = field(compare=False)


@lru_cache(maxsize=4096)
def _models(question: _Question) -> Mapping[str, PlannedStage]:
    """By stage, without those whose work nobody can count before they run.

    It takes milliseconds, so it is computed once per spec. The run itself is not kept.
    """
    run = question.run()
    assert run is not None, "whoever asks holds it"
    return planned_stages(run)


def planned(draft: Draft) -> Mapping[str, PlannedStage]:
    """Stages as they were to be before the run began; none if the present spec cannot be run, and of a run of another
    version whose model this one does not know any more.
    """
    if not all(node_counts(node_bounds(draft.run, stage)) for stage in draft.spec.stages):
        return {}
    head = draft.run.metadata
    hashes = tuple(stage.config_hash for stage in draft.status.stages)
    try:
        return _models(_Question(head.uid, head.generation, hashes, ref(draft.run)))
    except ManifestError:
        return {}


def forecast_bill(draft: Draft, bill: Bill) -> Forecast | None:
    """The expected bill of the whole run; None until steps of a stage were measured, and while nothing tells how long
    a stage takes whose work is counted.

    Stages whose work nobody knows yet (`curate` and `encode` before they run) are left out and marked as unknown.
    """
    if draft.finished():
        return Forecast(bill.total, bill.total, bill.total, [])
    if not all(node_counts(node_bounds(draft.run, stage)) for stage in draft.spec.stages):
        return None  # the present spec cannot be run
    found = {stage.name: _measured(draft, stage, bill) for stage in draft.status.stages}
    measured = {name: one for name, one in found.items() if one is not None}
    if not measured:
        return None  # before the models, which take milliseconds that a burst of new runs does not have
    models = {name: stage.node_seconds_per_step for name, stage in planned(draft).items()}
    specs = {stage.name: stage for stage in draft.spec.stages}
    rest, expected = _Rest(), []
    for stage in draft.status.stages:
        spent = bill.stages[stage.name].micros if stage.name in bill.stages else 0
        if stage.state in ("Succeeded", "Failed"):
            expected.append(_told(stage, spent, "spent"))
            continue
        known = measured.get(stage.name)
        factor, deviation = _factor(draft, stage, models, measured)
        if known is None and factor is None and stage.name in models:
            return None
        each = known.node_seconds if known else (factor or 0.0) * models.get(stage.name, 0.0)
        if not each or stage.total_steps is None:
            expected.append(_told(stage, None, "unknown"))
            continue
        source: Source = "measured" if known else "modelled"
        own = math.hypot(DRIFT, BETWEEN_STEPS / math.sqrt(known.steps)) if known else 0.0
        left = _add_stage(draft, rest, specs[stage.name], stage, each, _save_seconds(stage, measured))
        rest.variance += (left * own) ** 2
        rest.modelled += 0.0 if known else left
        rest.of_models += 0.0 if known else left * deviation
        expected.append(_told(stage, spent + round(left), source))
    return _summed(draft, bill, rest, expected)


def _told(stage: StageStatus, micros: int | None, source: Source) -> ExpectedStage:
    return ExpectedStage(name=stage.name, total=None if micros is None else format_micros(micros), source=source)


def _measured(draft: Draft, stage: StageStatus, bill: Bill) -> Measured | None:
    """By the stage's remembered generations; of one that is over and forgotten, by its bill."""
    steps, node_us, saves, saving_us = 0, 0.0, 0, 0
    for generation in draft.status.generations:
        facts = generation.progress
        each = facts.seconds_per_step(LEAST_STEPS) if facts and generation.stage == stage.name else None
        if facts is None or each is None:
            continue
        made = facts.step - (facts.resumed_step or 0) - 1
        steps += made
        node_us += max(0.0, each * made * 1e6 - facts.checkpoint_us) * len(generation.members)
        saving_us += facts.checkpoint_us
        saves += max(1, made // draft.spec.checkpoint.every_steps)
    if steps:
        return Measured(steps, node_us / steps / 1e6, saving_us / saves / 1e6)
    held = bill.stages.get(stage.name)
    if stage.state != "Succeeded" or held is None or not stage.total_steps:
        return None
    return Measured(stage.total_steps, held.node_microseconds / stage.total_steps / 1e6, 0.0)


def _factor(
    draft: Draft, stage: StageStatus, models: Mapping[str, float], measured: Mapping[str, Measured]
) -> tuple[float | None, float]:
    """How much longer than its model a stage takes, by the geometric mean of those that were measured, and the
    deviation of its logarithm. Stages of the same task count alone if there are any.
    """
    tasks = {each.name: each.task for each in draft.status.stages}
    ratios = {name: one.node_seconds / models[name] for name, one in measured.items() if models.get(name)}
    alike = [ratio for name, ratio in ratios.items() if tasks[name] == stage.task and ratio > 0]
    used: Sequence[float] = alike or [ratio for ratio in ratios.values() if ratio > 0]
    if not used:
        return None, 0.0
    mean = math.fsum(map(math.log, used)) / len(used)
    spread = BETWEEN_STAGES if alike else BETWEEN_TASKS
    return math.exp(mean), spread * math.sqrt(1 + 1 / len(used))


def _save_seconds(stage: StageStatus, measured: Mapping[str, Measured]) -> float:
    """The stage's own, else the mean of those of other stages."""
    if stage.name in measured:
        return measured[stage.name].save_seconds
    return math.fsum(one.save_seconds for one in measured.values()) / len(measured)


def _add_stage(draft: Draft, rest: _Rest, spec: Stage, stage: StageStatus, each: float, save: float) -> float:
    """Add what is left of a stage but its failures, micros, which is returned."""
    live = draft.live if draft.stage() == stage else None
    nodes = len(live.members) if live else node_counts(node_bounds(draft.run, spec))[-1]
    pool, policy = pool_of(draft.run, spec), draft.spec.checkpoint
    gpus = pool.gpus_per_node or 1
    price = parse_price(draft.price(pool))[0] * gpus / 3600  # of a node and second
    steps, seconds = max(0, (stage.total_steps or 0) - stage.step), each / nodes
    busy = steps * seconds
    between = min(policy.every_steps * seconds, policy.every_seconds or math.inf)
    saves = busy / between if spec.train or spec.autoencoder else 0.0
    waiting = live is None or live.progress is None or live.progress.started_at is None
    start = restart_seconds(draft) if waiting else 0.0
    micros = (busy + saves * save + start) * nodes * price
    days = busy * nodes * gpus / DAY
    if policy.peer_copies:
        between = min(between, policy.peer_copies.every_steps * seconds)
    rest.micros += micros
    rest.gpu_days += days
    # A failure comes at any time between two checkpoints alike, so half of it is done again.
    rest.failure += days * (between / 2 + restart_seconds(draft)) * nodes * price
    return micros


def _summed(draft: Draft, bill: Bill, rest: _Rest, stages: list[ExpectedStage]) -> Forecast:
    """With failures and idle nodes as they were seen so far."""
    count = sum(draft.status.restarts.model_dump().values())
    held = sum(one.gpu_microseconds or one.node_microseconds for one in bill.stages.values()) / 1e6 / DAY
    failure = rest.failure / rest.gpu_days if rest.gpu_days else 0.0
    if count >= 2 and held:
        expected = count / held * rest.gpu_days
    else:  # too few to tell: what large runs saw counts as one failure
        expected = (count + 1) / (held + 1000 / FAILURES_PER_1000_GPU_DAYS) * rest.gpu_days
    wasted = sum(bill.micros.get(bucket, 0) for bucket in WASTED)
    # What a failure costs by its model counts as one that was seen.
    each = (wasted + failure) / (count + 1) if count else failure
    idle = bill.micros.get(Bucket.IDLE, 0)
    left = (rest.micros + expected * each) * (1 + idle / max(1, bill.total - idle))
    deviation = math.hypot(math.sqrt(rest.variance), each * math.sqrt(expected + expected**2 / max(1, count)))
    low, high = _bounds(rest, left, deviation)
    return Forecast(bill.total + round(left), bill.total + round(low), bill.total + round(high), stages)


def _bounds(rest: _Rest, left: float, deviation: float) -> tuple[float, float]:
    """Of what is left, micros.

    Both of its uncertain parts are logarithmic, since what is left may be twice as much, and never less than nothing:
    what models tell of, by a factor, and all else together. The logarithm of a log-normal value of this deviation has
    this one; near the end of a run the deviation may be many times what is left.
    """
    if not left:
        return 0.0, 0.0
    other = QUANTILE * math.sqrt(math.log1p((deviation / left) ** 2))
    factor = QUANTILE * rest.of_models / rest.modelled if rest.modelled else 0.0
    certain = left - rest.modelled
    below, above = (math.log((certain + rest.modelled * math.exp(each)) / left) for each in (-factor, factor))
    return left * math.exp(-math.hypot(below, other)), left * math.exp(math.hypot(above, other))
