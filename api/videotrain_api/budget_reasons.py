"""What a TrainingBudget tells: the reasons of its conditions and events, the form of each message, and what to do."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from videotrain_api.reasons import NOTHING, Notice
from videotrain_api.vocabulary import BudgetCondition


class BudgetReason(StrEnum):
    """Reasons of conditions and events of a TrainingBudget."""

    WITHIN_BUDGET = "WithinBudget"
    RULE_REACHED = "RuleReached"
    RULES_LIFTED = "RulesLifted"
    MONTH_BEGINS = "MonthBegins"
    ONE_CURRENCY = "OneCurrency"
    OTHER_CURRENCY = "OtherCurrency"
    UNREADABLE = "Unreadable"
    OTHER_NAMESPACES = "OtherNamespaces"


class BudgetMessage(StrEnum):
    """Forms of messages; `format` fills the braces."""

    RULE = "{action} at {percent} %{whom}"
    REACHED = "{action} at {percent} % of {amount} {currency} holds{whom} until {until}; {spent} are spent"
    LIFTED = "spec was changed: {actions} no longer hold"
    MONTH = "{month} begins; {spent} {currency} were spent in {before}"
    OTHER_CURRENCY = "not counted, since they are priced in another currency than {currency}: {runs}"
    UNJUDGED = "the budget is not judged, and the rules that held go on until the month is over: {message}"
    OTHER_NAMESPACES = (
        "spec.namespaces covers runs that an operator for some namespaces does not see; it must be a list of such as "
        "one operator serves (its --namespaces)"
    )


def _notice(where: BudgetCondition | None, type_: str, reason: BudgetReason, message: str, advice: str) -> Notice:
    return Notice(where=where or "event", type=type_, reason=reason, message=message, advice=advice)


_RAISE: Final = "Raise spec.amount, give runs that must go on a higher spec.priority, or wait for the next month."
_OTHERS: Final = "Price the runs in the currency of the budget."
_UNREADABLE: Final = "Bring the CustomResourceDefinition up to date, or correct the field that is named."
_ONE: Final = "Make a budget for the namespaces of each operator, or let one operator serve all namespaces."
BUDGET_NOTICES: Final = (
    _notice(BudgetCondition.WITHIN_BUDGET, "True", BudgetReason.WITHIN_BUDGET, "", NOTHING),
    _notice(BudgetCondition.WITHIN_BUDGET, "False", BudgetReason.RULE_REACHED, BudgetMessage.RULE, _RAISE),
    _notice(BudgetCondition.WITHIN_BUDGET, "Unknown", BudgetReason.UNREADABLE, BudgetMessage.UNJUDGED, _UNREADABLE),
    _notice(BudgetCondition.WITHIN_BUDGET, "Unknown", BudgetReason.OTHER_NAMESPACES, BudgetMessage.UNJUDGED, _ONE),
    _notice(BudgetCondition.ALL_COUNTED, "True", BudgetReason.ONE_CURRENCY, "", NOTHING),
    _notice(BudgetCondition.ALL_COUNTED, "False", BudgetReason.OTHER_CURRENCY, BudgetMessage.OTHER_CURRENCY, _OTHERS),
    _notice(None, "Warning", BudgetReason.RULE_REACHED, BudgetMessage.REACHED, _RAISE),
    _notice(None, "Warning", BudgetReason.OTHER_CURRENCY, BudgetMessage.OTHER_CURRENCY, _OTHERS),
    _notice(None, "Normal", BudgetReason.RULES_LIFTED, BudgetMessage.LIFTED, NOTHING),
    _notice(None, "Normal", BudgetReason.MONTH_BEGINS, BudgetMessage.MONTH, NOTHING),
)
"""All that a TrainingBudget can tell."""
