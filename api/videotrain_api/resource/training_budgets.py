"""The `TrainingBudget` resource: what a team, some namespaces or the whole cluster may spend in a calendar month."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from videotrain_api.resource.pool import Currency, LabelValue, Money, ObjectName
from videotrain_api.resource.status import ConditionStatus
from videotrain_api.schema import ApiModel
from videotrain_api.vocabulary import API_VERSION, BUDGET_KIND

Action = Literal["Notify", "RefuseNew", "Shrink", "CheckpointAndSuspend"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
"""From the mildest on."""
Namespace = Annotated[ObjectName, Field(min_length=1, max_length=63)]


class BudgetMetadata(ApiModel):
    """The part of Kubernetes object metadata that is read; the rest is accepted and kept."""

    model_config = ApiModel.model_config | {"extra": "allow"}

    name: ObjectName
    """Name, as it stands in messages."""
    uid: str | None = None
    """Set by the API server."""
    generation: int | None = None
    """Set by the API server; rises with every change of spec."""


class BudgetRule(ApiModel):
    """What happens when so much of the amount is spent."""

    at_percent: int = Field(ge=1, le=100)
    """Share of spec.amount. Shrink and CheckpointAndSuspend act before it would be passed at the next checkpoint, the
    runs of the lowest priority first."""
    action: Action
    """Tell; let no run begin that held no node yet; go on with the fewest nodes; or save and release all nodes. It
    holds until the month is over or the amount is raised."""
    below_priority: int | None = Field(default=None, ge=-1_000_000, le=1_000_000)
    """Only runs whose spec.priority is less; every run if unset. Not with Notify."""


class TrainingBudgetSpec(ApiModel):
    """Whose runs, how much in a month, and what happens."""

    team: Annotated[LabelValue, Field(min_length=1)] | None = None
    """Runs with this value of the label videotrain.dev/team; of every team if unset."""
    namespaces: list[Namespace] = Field(default_factory=list, max_length=256)
    """Runs of these namespaces; of every one if empty. With team: those of the team in these namespaces."""
    amount: Money
    """Most to spend in a calendar month (UTC), decimal string in `currency`. Runs that are deleted count on."""
    currency: Currency = "USD"
    """Runs that are priced in another one are not counted, and do not begin."""
    rules: list[BudgetRule] = Field(
        default_factory=lambda: [
            BudgetRule(at_percent=80, action="Notify"),
            BudgetRule(at_percent=100, action="CheckpointAndSuspend"),
        ],
        max_length=16,
    )
    """What happens at which share. By default: tell at 80 percent, save and release all nodes before 100."""


class ReachedRule(ApiModel):
    """A rule that holds for the rest of the month."""

    at_percent: int
    """As in the rule."""
    action: Action
    """As in the rule."""
    below_priority: int | None = None
    """As in the rule."""
    limit_micros: int
    """The money at which it holds, millionths of the currency unit."""
    up_to_priority: int | None = None
    """It holds for runs of this spec.priority and of lower ones; for every run if unset."""
    since: datetime
    """When it was reached for the first of them."""


class TrainingBudgetStatus(ApiModel):
    """What was spent in the month, and which rules hold. Written by the operator only."""

    observed_generation: int = 0
    """metadata.generation that it was computed from."""
    month: str = ""
    """Calendar month in UTC, such as 2026-11."""
    state: str = ""
    """WithinBudget, or the strongest action that holds; for people."""
    spent_micros: int = 0
    """Spent in the month by the runs that are counted, millionths of the currency unit."""
    spent: str = "0"
    """The same as a decimal string, for people."""
    percent: str = "0%"
    """The same as a share of spec.amount, for people."""
    rate_per_hour: str = "0"
    """What the nodes of these runs cost in an hour, decimal string."""
    expected: str = "0"
    """What will be spent at the end of the month if they go on so, decimal string."""
    runs: int = 0
    """Runs that spent something in the month, with those that are gone."""
    reached: list[ReachedRule] = Field(default_factory=list)
    """Rules that hold, in their order."""
    unconfirmed: list[ReachedRule] = Field(default_factory=list)
    """Rules, or more priorities for them, that one look found reached, and since when; they hold when a later look at
    newer bills finds the same."""
    conditions: list[ConditionStatus] = Field(default_factory=list)
    """What is true of the budget, by type."""


class TrainingBudget(ApiModel):
    """What a team, some namespaces or the whole cluster may spend on runs in a calendar month."""

    api_version: Literal["videotrain.dev/v1alpha1"] = API_VERSION
    """Always videotrain.dev/v1alpha1."""
    kind: Literal["TrainingBudget"] = BUDGET_KIND
    """Always TrainingBudget."""
    metadata: BudgetMetadata
    """Object metadata."""
    spec: TrainingBudgetSpec
    """Desired state."""
    status: TrainingBudgetStatus | None = None
    """Observed state; written by the operator only."""

    def covers(self, namespace: str, team: str) -> bool:
        """Whether runs of a namespace and a team are counted and held to it; `team` is empty for none."""
        spec = self.spec
        return spec.team in (None, team) and (not spec.namespaces or namespace in spec.namespaces)

    def holding(self, priority: int) -> Iterator[ReachedRule]:
        """The rules that hold for runs of a priority."""
        for rule in self.status.reached if self.status else ():
            if rule.up_to_priority is None or priority <= rule.up_to_priority:
                yield rule
