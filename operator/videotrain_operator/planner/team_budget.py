"""What the budgets of teams ask of a run: to wait, to be small, or to save and release its nodes.

What was spent by others is not looked at here: the status of a TrainingBudget says which rules hold, see
`accounting.training_budgets`.
"""

from __future__ import annotations

from datetime import datetime

from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.status import ConditionStatus
from videotrain_api.resource.training_budgets import ReachedRule, TrainingBudget
from videotrain_api.times import next_month, rfc3339
from videotrain_api.vocabulary import LABEL_TEAM, Condition
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft


def check_team_budgets(draft: Draft) -> None:
    """Obey the rules that hold for the run: the strictest one is told."""
    if draft.finished():
        return
    head, budgets = draft.run.metadata, draft.observed.budgets
    old = find_condition(draft, Condition.TEAM_BUDGET_OK)
    if budgets is None:
        _hold_as_recorded(draft, old)
        return
    covering = [b for b in budgets if b.covers(head.namespace, head.labels.get(LABEL_TEAM, ""))]
    if not covering:
        if old is not None:
            set_condition(draft, Condition.TEAM_BUDGET_OK, status=True, reason=Reason.NO_LIMIT)
        return
    reason, message = Reason.TEAM_BUDGET, _refused(draft, covering) or _stopped(draft, covering)
    if not message:
        reason, message = Reason.TEAM_BUDGET_SHRINK, _shrunk(draft, covering)
    if not message:
        names = ", ".join(sorted(budget.metadata.name for budget in covering))
        set_condition(draft, Condition.TEAM_BUDGET_OK, status=True, reason=Reason.WITHIN_BUDGET, message=names)
        return
    _obey(draft, reason)
    set_condition(draft, Condition.TEAM_BUDGET_OK, status=False, reason=reason, message=message)
    if old is None or (old.status, old.message) != ("False", message):
        draft.tell("Warning", reason, message)


def _hold_as_recorded(draft: Draft, old: ConditionStatus | None) -> None:
    """Nobody knows the budgets: a run that one stopped must not go on because of that."""
    if old is not None and old.status == "False":
        _obey(draft, old.reason)


def _obey(draft: Draft, reason: str) -> None:
    if reason == Reason.TEAM_BUDGET_SHRINK:
        draft.smallest = True
    else:
        draft.suspend_reason = draft.suspend_reason or Reason.TEAM_BUDGET


def _refused(draft: Draft, budgets: list[TrainingBudget]) -> str:
    """A run in another currency cannot be counted, so it does not begin."""
    own = draft.spec.pool.currency
    other = next((budget for budget in budgets if budget.spec.currency != own), None)
    if other is None or not _is_new(draft):
        return ""
    return Message.TEAM_CURRENCY.text(own=own, budget=other.metadata.name, currency=other.spec.currency)


def _is_new(draft: Draft) -> bool:
    """It held no node yet; pods that wait for one were made all the same."""
    return draft.status.active_since is None and draft.status.active_microseconds == 0


def _stopped(draft: Draft, budgets: list[TrainingBudget]) -> str:
    new = _is_new(draft)
    for budget in budgets:
        for rule in budget.holding(draft.run.spec.priority):
            if rule.action == "CheckpointAndSuspend" or (rule.action == "RefuseNew" and new):
                return _message(budget, rule, draft.now)
    return ""


def _shrunk(draft: Draft, budgets: list[TrainingBudget]) -> str:
    for budget in budgets:
        for rule in budget.holding(draft.run.spec.priority):
            if rule.action == "Shrink":
                return _message(budget, rule, draft.now)
    return ""


def _message(budget: TrainingBudget, rule: ReachedRule, now: datetime) -> str:
    return Message.TEAM_BUDGET.text(
        budget=budget.metadata.name,
        amount=budget.spec.amount,
        currency=budget.spec.currency,
        action=rule.action,
        percent=rule.at_percent,
        until=rfc3339(next_month(now), "seconds"),
    )
