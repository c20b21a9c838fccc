"""Budget, checkpoints and failure rules that can take effect."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.cost.forecast import gpu_cost_micros
from videotrain_api.cost.gpus import PEAK_FLOPS
from videotrain_api.cost.work import modelled_seconds, stage_work
from videotrain_api.money import format_micros, parse_micros
from videotrain_api.resource.trainrun import Budget, VideoTrainingRun, node_bounds, pool_of, pools_of
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem


def check_spending(facts: Facts) -> Iterator[Problem]:
    """Limits without effect or below the least that can be bought with them."""
    spec = facts.run.spec
    if spec.budget:
        yield from _budget(spec.budget, any(parse_micros(pool.price) for pool in pools_of(facts.run).values()))
    keep, every = spec.checkpoint.keep_every_steps, spec.checkpoint.every_steps
    if keep is not None and keep % every:
        allowed = f"must be a multiple of everySteps ({every}), or there is no checkpoint to keep"
        yield Problem("spec.checkpoint.keepEverySteps", keep, allowed)
    rules = spec.failure_policy.rules
    for number, rule in enumerate(rules[:-1]):
        if not rule.exit_codes and not rule.reasons:
            allowed = "it matches everything, so the rules after it are never used: put it last or add a condition"
            yield Problem(f"spec.failurePolicy.rules[{number}]", rule.to_wire(), allowed)


def check_affordable(facts: Facts) -> Iterator[Problem]:
    """A budget must pay for one checkpoint interval of the first training stage, even at full peak."""
    budget = facts.run.spec.budget
    if budget is None:
        return
    for index, stage in enumerate(facts.run.spec.stages):
        task = stage.train or stage.autoencoder
        if task is not None:
            steps = min(task.steps, facts.run.spec.checkpoint.every_steps)
            yield from _affordable(facts.run, index, budget, steps)
            return


def _budget(budget: Budget, costs: bool) -> Iterator[Problem]:
    if budget.max_cost is None and budget.max_gpu_hours is None:
        yield Problem("spec.budget", budget.to_wire(), "has no limit: set maxCost, maxGpuHours or both")
    if budget.max_cost is not None and parse_micros(budget.max_cost) == 0:
        yield Problem("spec.budget.maxCost", budget.max_cost, "buys no step; allowed: more than 0, or no budget at all")
    elif budget.max_cost is not None and not costs:
        allowed = "can never be reached at spec.pool.pricePerGpuHour 0: set a price or use maxGpuHours"
        yield Problem("spec.budget.maxCost", budget.max_cost, allowed)
    if budget.warn_at_percent != sorted(set(budget.warn_at_percent)):
        yield Problem("spec.budget.warnAtPercent", budget.warn_at_percent, "must be ascending without repetition")


def _affordable(run: VideoTrainingRun, index: int, budget: Budget, steps: int) -> Iterator[Problem]:
    stage, currency = run.spec.stages[index], run.spec.pool.currency
    pool = pool_of(run, stage)
    work = stage_work(run, stage)
    if work is None:
        return
    gpus = node_bounds(run, stage).min * pool.gpus_per_node
    one = modelled_seconds(work, gpus, 1.0, PEAK_FLOPS)
    where = f"of stage '{stage.name}' on {gpus} GPU(s) at full peak"
    for count, what in ((1, "one step"), (steps, f"one checkpoint interval ({steps} steps)")):
        least = gpu_cost_micros(one * count, gpus, pool.price)
        hours = one * count * gpus / 3600
        if budget.max_cost is not None and 0 < parse_micros(budget.max_cost) < least:
            allowed = f"is below {what} {where}; allowed: {format_micros(least)} {currency} or more"
            yield Problem("spec.budget.maxCost", budget.max_cost, allowed)
            return
        if budget.max_gpu_hours is not None and budget.max_gpu_hours < hours:
            allowed = f"is below {what} {where}; allowed: {hours:.6g} or more"
            yield Problem("spec.budget.maxGpuHours", budget.max_gpu_hours, allowed)
            return
