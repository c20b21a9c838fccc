"""The budget: warn early, act before a limit would be passed.

The forecast is what is spent, plus what the nodes cost until the next checkpoint is complete and saved. Acting when
it passes the limit overshoots by no more than one checkpoint interval, whatever the prices do meanwhile.
"""

from __future__ import annotations

from fractions import Fraction

from videotrain_api.money import MICROSECONDS_PER_HOUR, format_micros, parse_micros
from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.trainrun import Budget
from videotrain_api.vocabulary import Condition
from videotrain_operator.accounting.ledger import Bill
from videotrain_operator.accounting.training_budgets import DRAIN_SECONDS
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.finish import fail_run
from videotrain_operator.planner.rates import step_seconds


def check_budget(draft: Draft, bill: Bill) -> None:
    """Warn, and take the budget's action when the limit would be passed."""
    budget = draft.spec.budget
    if draft.finished():
        return
    if budget is None or (budget.max_cost is None and budget.max_gpu_hours is None):
        draft.update(budget_stop=None, warned_percents=[])
        set_condition(draft, Condition.BUDGET_OK, status=True, reason=Reason.NO_LIMIT)
        return
    _warn(draft, budget, spent_percent(budget, bill))
    limits = _limits(budget)
    stopped = draft.status.budget_stop == limits
    if not stopped:
        draft.update(budget_stop=None)
        # Acting on an untrusted time saves no money: what comes after is a run that somebody must bring back by hand.
        stopped = _would_pass(draft, budget, bill) and draft.confirmed(Reason.BUDGET_EXCEEDED)
    if not stopped:
        set_condition(draft, Condition.BUDGET_OK, status=True, reason=Reason.WITHIN_BUDGET, message=limits)
        return
    _act(draft, budget, bill, limits)


def spent_percent(budget: Budget | None, bill: Bill) -> float | None:
    """Share of the tighter limit that is spent, percent; None without a limit."""
    shares = []
    if budget is not None and budget.max_cost is not None:
        shares.append(Fraction(bill.total * 100, max(1, parse_micros(budget.max_cost))))
    if budget is not None and budget.max_gpu_hours is not None:
        shares.append(Fraction(bill.held * 100, _microseconds(budget)))
    return round(float(max(shares)), 2) if shares else None


def _microseconds(budget: Budget) -> int:
    assert budget.max_gpu_hours is not None
    return max(1, round(budget.max_gpu_hours * MICROSECONDS_PER_HOUR))


def _limits(budget: Budget) -> str:
    limits = {"maxCost": budget.max_cost, "maxGpuHours": budget.max_gpu_hours, "action": budget.action}
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)


def _warn(draft: Draft, budget: Budget, percent: float | None) -> None:
    spent = percent or 0.0
    reached = [mark for mark in sorted(budget.warn_at_percent) if spent >= mark]
    if set(reached) - set(draft.status.warned_percents):
        message = Message.BUDGET_MARK.text(percent=f"{spent:.1f}", mark=reached[-1], limits=_limits(budget))
        draft.tell("Warning", Reason.BUDGET_WARNING, message)
    if reached != draft.status.warned_percents:
        draft.update(warned_percents=reached)


def until_saved_micros(draft: Draft, bill: Bill) -> int:
    """What the nodes that are held cost until the next checkpoint is complete."""
    return round(Fraction(_until_saved(draft)) * bill.rate_micros_per_hour / 3600)


def _would_pass(draft: Draft, budget: Budget, bill: Bill) -> bool:
    seconds = _until_saved(draft) if bill.gpus_held or bill.rate_micros_per_hour else 0.0
    if budget.max_cost is not None:
        more = Fraction(seconds) * bill.rate_micros_per_hour / 3600
        if bill.total + more >= parse_micros(budget.max_cost):
            return True
    if budget.max_gpu_hours is None:
        return False
    return bill.held + Fraction(seconds) * bill.gpus_held * 1_000_000 >= _microseconds(budget)


def _until_saved(draft: Draft) -> float:
    """Seconds until the next checkpoint of the running generation is complete."""
    live, stage = draft.live, draft.stage()
    if live is None or stage is None:
        return DRAIN_SECONDS
    each = step_seconds(draft, len(live.members)) or 0.0
    every = draft.spec.checkpoint.every_steps
    steps = every - stage.step % every
    if stage.total_steps is not None:
        steps = min(steps, max(0, stage.total_steps - stage.step))
    seconds, most = steps * each, draft.spec.checkpoint.every_seconds
    # By the clock at the end of a step: so at most one step after it is due.
    return (seconds if most is None else min(seconds, most + each)) + DRAIN_SECONDS


def _act(draft: Draft, budget: Budget, bill: Bill, limits: str) -> None:
    message = Message.BUDGET_EXCEEDED.text(
        money=format_micros(bill.total),
        currency=draft.spec.pool.currency,
        hours=f"{bill.held / MICROSECONDS_PER_HOUR:.3f}",
        limits=limits,
    )
    old = find_condition(draft, Condition.BUDGET_OK)
    if old is None or old.status != "False" or draft.before.budget_stop != limits:
        # Said once: what is spent goes on moving, and the status has it.
        set_condition(draft, Condition.BUDGET_OK, status=False, reason=Reason.BUDGET_EXCEEDED, message=message)
        draft.tell("Warning", Reason.BUDGET_EXCEEDED, message)
    draft.update(budget_stop=limits)
    if budget.action == "Shrink":
        draft.smallest = True
    elif budget.action == "CheckpointAndSuspend":
        draft.suspend_reason = Reason.BUDGET_EXCEEDED
    elif budget.action == "Fail":
        _save_and_fail(draft, message)


def _save_and_fail(draft: Draft, message: str) -> None:
    """Workers save first: the run fails once no pod is held, and until then is released like a suspended one."""
    if any(pod.bound_at and not pod.finished_at for pod in draft.observed.pods):
        draft.suspend_reason = Reason.BUDGET_EXCEEDED
        return
    fail_run(draft, Reason.BUDGET_EXCEEDED, message)
