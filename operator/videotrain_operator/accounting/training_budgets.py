"""Team budgets: what the runs of a month spent together, and which rules hold because of it.

A rule that was reached holds until the month is over or the budget's spec says otherwise. It is written into the
budget's status before any run obeys it, so whoever leads next finds it there, and a run that was suspended early
enough to stay below the limit does not go on because it costs nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Final, Literal, NamedTuple

from videotrain_api.budget_reasons import BudgetMessage, BudgetReason
from videotrain_api.money import MICROSECONDS_PER_HOUR, format_micros, parse_micros
from videotrain_api.resource.status import ConditionStatus
from videotrain_api.resource.training_budgets import (
    ACTIONS,
    BudgetRule,
    ReachedRule,
    TrainingBudget,
    TrainingBudgetStatus,
)
from videotrain_api.times import month_begin, month_name, next_month, rfc3339
from videotrain_api.vocabulary import BudgetCondition

DRAIN_SECONDS: Final = 10.0
"""Finishing the step and saving, until a drain was measured."""
CONFIRM_SECONDS: Final = 1.0
"""Between the two passes, or looks at a budget, that must come to a decision that cannot be taken back."""
UNSEEN_SECONDS: Final = 15.0
"""After so long no newer bills of runs that hold nodes are waited for. On an idle watch a bill is as old as its newest
news, up to a minute, and money goes on; a wild one is gone by then, since a rule that is found wakes every run."""
HIGHEST: Final = 1_000_000
"""Priority that no run's is above."""
RUNS_NAMED: Final = 3
"""Runs that a message lists."""
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one run spent, and what its nodes cost. A run that is gone has no rate any more."""

    uid: str
    namespace: str
    name: str
    team: str = ""
    """Label videotrain.dev/team; empty without."""
    currency: str
    priority: int = 0
    months: Mapping[str, int]
    """Micros by calendar month up to `as_of`."""
    as_of: datetime | None = None
    """Up to when what its nodes cost is in `months`."""
    looked_at: datetime | None = None
    """When its pods were last looked at: where a watch is idle, up to a minute before `as_of`."""
    rate_micros_per_hour: int = 0
    until_saved_micros: int = 0
    """What its nodes cost from `as_of` until its next checkpoint is complete."""

    def spent(self, now: datetime) -> int:
        """Micros in the month of `now`, as if what it holds had not changed since the last look."""
        counted = self.months.get(month_name(now), 0)
        if self.as_of is None or not self.rate_micros_per_hour:
            return counted
        since = (now - max(self.as_of, month_begin(now))) // _MICROSECOND
        return counted + max(0, since) * self.rate_micros_per_hour // MICROSECONDS_PER_HOUR

    def ahead(self, now: datetime) -> int:
        """Micros that it will cost from now until its next checkpoint is complete."""
        since = timedelta() if self.as_of is None else now - self.as_of
        passed = since // _MICROSECOND * self.rate_micros_per_hour // MICROSECONDS_PER_HOUR
        return max(self.until_saved_micros - passed, self.drain)

    def stopped(self, at: datetime) -> Account:
        """The same run if it held no node any more from a time on."""
        months = {**self.months, month_name(at): self.spent(at)}
        return replace(self, months=months, rate_micros_per_hour=0, until_saved_micros=0)

    @property
    def drain(self) -> int:
        """Micros of leaving its nodes in good order."""
        return round(Fraction(DRAIN_SECONDS) * self.rate_micros_per_hour / 3600)


class BudgetEvent(NamedTuple):
    """Something to tell about a budget, after its status was written."""

    type: Literal["Normal", "Warning"]
    reason: BudgetReason
    message: str


def judge(
    budget: TrainingBudget, accounts: Iterable[Account], now: datetime
) -> tuple[TrainingBudgetStatus, list[BudgetEvent]]:
    """The status of a budget, and what to tell about what is new in it.

    Args:
        budget: with the status that was written last, which says what holds already.
        accounts: of every run that spent something in this month or the last, gone ones too; each uid once.
        now: the time, aware.
    """
    covered = [account for account in accounts if budget.covers(account.namespace, account.team)]
    counted = [account for account in covered if account.currency == budget.spec.currency]
    others = sorted(f"{one.namespace}/{one.name}" for one in covered if one.currency != budget.spec.currency)
    before, month = budget.status or TrainingBudgetStatus(), month_name(now)
    known = before if before.month == month else TrainingBudgetStatus()
    spent = sum(account.spent(now) for account in counted)
    found = [_reached(budget, rule, counted, known, now) for rule in budget.spec.rules]
    reached = [rule for rule, _ in found if rule is not None]
    rate = sum(account.rate_micros_per_hour for account in counted)
    left = (next_month(now) - now) // _MICROSECOND * rate // MICROSECONDS_PER_HOUR
    amount = parse_micros(budget.spec.amount)
    status = TrainingBudgetStatus(
        observed_generation=budget.metadata.generation or 0,
        month=month,
        state=max((rule.action for rule in reached), key=ACTIONS.index, default=BudgetReason.WITHIN_BUDGET.value),
        spent_micros=spent,
        spent=format_micros(spent),
        percent=f"{100 * spent / max(1, amount):.1f}%",
        rate_per_hour=format_micros(rate),
        expected=format_micros(spent + left),
        runs=sum(account.spent(now) > 0 for account in counted),
        reached=reached,
        unconfirmed=[rule for _, waiting in found for rule in waiting],
        conditions=_conditions(budget, reached, others, now),
    )
    return status, [*_month_begun(before, counted, budget, month), *_news(budget, known.reached, status, others, now)]


def _reached(
    budget: TrainingBudget, rule: BudgetRule, counted: Sequence[Account], before: TrainingBudgetStatus, now: datetime
) -> tuple[ReachedRule | None, list[ReachedRule]]:
    """The rule as it holds now, None if it does not, and what has to be confirmed first. What held for a priority goes
    on doing so, unless the limit is raised.

    Args:
        budget: whose rule it is.
        rule: to be looked at.
        counted: see `judge`.
        before: the status of this month as it was written last.
        now: the time, aware.
    """
    limit, spent = parse_micros(budget.spec.amount) * rule.at_percent // 100, sum(one.spent(now) for one in counted)
    old = next((k for k in before.reached if _same(k, rule) and k.limit_micros >= limit), None)
    if old is not None:
        old = old.model_copy(update={"limit_micros": limit})
    held = -HIGHEST - 1 if old is None else _level(old)
    level = held
    if spent >= limit:
        level = HIGHEST if rule.below_priority is None else rule.below_priority - 1
    elif rule.action in ("Shrink", "CheckpointAndSuspend"):
        level = max(_levels(rule, counted, limit - spent, now), default=held)
    if level <= held:
        return old, []
    known = {_level(k): k.since for k in before.unconfirmed if _same(k, rule) and k.limit_micros >= limit}
    known = {of: since for of, since in known.items() if since <= now}
    looked_at = max((one.looked_at for one in counted if one.looked_at and one.rate_micros_per_hour), default=None)
    new, waiting = old, []
    for of in sorted({level, *(of for of in known if held < of < level)}):
        # What was found for a priority was found for lower ones.
        since = min([now, *(at for above, at in known.items() if above >= of)])
        found = ReachedRule(
            at_percent=rule.at_percent,
            action=rule.action,
            below_priority=rule.below_priority,
            limit_micros=limit,
            up_to_priority=None if of >= HIGHEST else of,
            since=since,
        )
        if _is_confirmed(since, looked_at, now):
            new = found.model_copy(update={"since": old.since if old else now})
        else:
            waiting.append(found)
    return new, waiting


def _level(rule: ReachedRule) -> int:
    return HIGHEST if rule.up_to_priority is None else rule.up_to_priority


def _is_confirmed(since: datetime, looked_at: datetime | None, now: datetime) -> bool:
    """A rule holds for a month, so one wrong reading of a clock or a bill does not decide it."""
    waited = (now - since).total_seconds()
    newer = looked_at is None or looked_at > since or waited >= UNSEEN_SECONDS
    return waited >= CONFIRM_SECONDS and newer


def _same(reached: ReachedRule, rule: BudgetRule | ReachedRule) -> bool:
    parts = (rule.at_percent, rule.action, rule.below_priority)
    return (reached.at_percent, reached.action, reached.below_priority) == parts


def _levels(rule: BudgetRule, counted: Sequence[Account], room: int, now: datetime) -> list[int]:
    """Priorities for which the rule holds, ascending: as many as it takes for what all others will have spent when
    their next checkpoints are complete, and these when they have left, to stay below the limit.
    """
    holding = [account for account in counted if account.rate_micros_per_hour]
    priorities = sorted(
        {a.priority for a in holding if rule.below_priority is None or a.priority < rule.below_priority}
    )
    taken: list[int] = []
    for priority in priorities:
        ahead = sum(a.drain if a.priority < priority else a.ahead(now) for a in holding)
        if ahead < room:
            break
        taken.append(priority)
    return taken


def _month_begun(
    before: TrainingBudgetStatus, counted: Sequence[Account], budget: TrainingBudget, month: str
) -> list[BudgetEvent]:
    if before.month in ("", month):
        return []
    spent = format_micros(sum(account.months.get(before.month, 0) for account in counted))
    values = {"month": month, "before": before.month, "spent": spent, "currency": budget.spec.currency}
    return [BudgetEvent("Normal", BudgetReason.MONTH_BEGINS, BudgetMessage.MONTH.format(**values))]


def _news(
    budget: TrainingBudget, kept: Sequence[ReachedRule], status: TrainingBudgetStatus, others: list[str], now: datetime
) -> list[BudgetEvent]:
    events = []
    for rule in status.reached:
        known = ((old.up_to_priority, old.since) for old in kept if _same(old, rule))
        if (rule.up_to_priority, rule.since) not in known:  # a lowered limit is no news of a rule that holds
            message = BudgetMessage.REACHED.format(
                action=rule.action,
                percent=rule.at_percent,
                amount=budget.spec.amount,
                currency=budget.spec.currency,
                whom=_whom(rule),
                until=rfc3339(next_month(now), "seconds"),
                spent=status.spent,
            )
            events.append(BudgetEvent("Warning", BudgetReason.RULE_REACHED, message))
    marks = {(rule.action, rule.at_percent) for rule in status.reached}
    lifted = [f"{old.action} at {old.at_percent} %" for old in kept if (old.action, old.at_percent) not in marks]
    if lifted:
        message = BudgetMessage.LIFTED.format(actions=", ".join(lifted))
        events.append(BudgetEvent("Normal", BudgetReason.RULES_LIFTED, message))
    told = budget.status is not None and any(
        one.type == BudgetCondition.ALL_COUNTED and one.status == "False" for one in budget.status.conditions
    )
    if others and not told:
        events.append(BudgetEvent("Warning", BudgetReason.OTHER_CURRENCY, _named(budget, others)))
    return events


def _whom(rule: ReachedRule) -> str:
    return "" if rule.up_to_priority is None else f" for runs of spec.priority {rule.up_to_priority} and less"


def _named(budget: TrainingBudget, others: list[str]) -> str:
    more = f" and {len(others) - RUNS_NAMED} more" if len(others) > RUNS_NAMED else ""
    runs = ", ".join(others[:RUNS_NAMED]) + more
    return BudgetMessage.OTHER_CURRENCY.format(currency=budget.spec.currency, runs=runs)


def _conditions(
    budget: TrainingBudget, reached: Sequence[ReachedRule], others: list[str], now: datetime
) -> list[ConditionStatus]:
    strict = [rule for rule in reached if rule.action != "Notify"]
    rules = "; ".join(
        BudgetMessage.RULE.format(action=rule.action, percent=rule.at_percent, whom=_whom(rule)) for rule in strict
    )
    within = BudgetReason.RULE_REACHED if strict else BudgetReason.WITHIN_BUDGET
    one = BudgetReason.OTHER_CURRENCY if others else BudgetReason.ONE_CURRENCY
    told = _named(budget, others) if others else ""
    return [
        _condition(budget, BudgetCondition.WITHIN_BUDGET, not strict, within, rules, now),
        _condition(budget, BudgetCondition.ALL_COUNTED, not others, one, told, now),
    ]


def unjudged(reason: BudgetReason, message: str, now: datetime) -> ConditionStatus:
    """The condition of a budget that is not judged."""
    return ConditionStatus(
        type=BudgetCondition.WITHIN_BUDGET.value,
        status="Unknown",
        reason=reason.value,
        message=message,
        last_transition_time=now,
    )


def _condition(
    budget: TrainingBudget, kind: BudgetCondition, holds: bool, reason: BudgetReason, message: str, now: datetime
) -> ConditionStatus:
    """The time of its transition is the old one unless it flipped."""
    old = next((c for c in (budget.status.conditions if budget.status else ()) if c.type == kind), None)
    since = old.last_transition_time if old is not None and old.status == str(holds) else now
    return ConditionStatus(
        type=kind.value,
        status=str(holds),
        reason=reason.value,
        message=message,
        observed_generation=budget.metadata.generation,
        last_transition_time=since,
    )
