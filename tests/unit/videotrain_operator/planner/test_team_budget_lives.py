"""Whatever happens to a team's runs and to the operator: the budget knows what was spent, and is not passed."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.team_budgets import EVERY_STEPS, GPU_SECOND, Operator, Team, a_second, budget_body, rules

from videotrain_api.money import parse_micros
from videotrain_api.times import month_name

START = datetime(2026, 1, 31, 23, 59, 30, tzinfo=UTC)
"""Half a minute before a month's turn."""
MOST_RUNS = 4
AMOUNTS = ("0.060", "0.120", "0.300")
INTERVAL = EVERY_STEPS * 2 * GPU_SECOND


class TeamLife(RuleBasedStateMachine):
    """People, machines and an operator that dies."""

    @initialize(below=st.sampled_from([None, 5]))
    def begin(self, below: int | None) -> None:
        given = rules((50, "Notify", None), (80, "CheckpointAndSuspend", 5), (100, "CheckpointAndSuspend", None))
        self.team = Team(budget_body(AMOUNTS[0], given if below else given[-1:]), start=START)
        self.operator = Operator(self.team)
        self.made = 0

    @precondition(lambda self: len(self.team.members) < MOST_RUNS)
    @rule(priority=st.sampled_from([0, 0, 5]))
    def somebody_creates_a_run(self, priority: int) -> None:
        self.team.add(f"run-{self.made}", priority)
        self.made += 1

    @precondition(lambda self: self.team.members)
    @rule(data=st.data())
    def somebody_deletes_a_run(self, data: st.DataObject) -> None:
        self.team.delete(data.draw(st.sampled_from(sorted(self.team.members))))

    @precondition(lambda self: self.team.members)
    @rule(data=st.data())
    def somebody_suspends_a_run_or_lets_it_go_on(self, data: st.DataObject) -> None:
        cluster = self.team.members[data.draw(st.sampled_from(sorted(self.team.members)))]
        cluster.edit(suspend=not cluster.run["spec"].get("suspend", False))

    @precondition(lambda self: self.team.members)
    @rule(data=st.data(), priority=st.sampled_from([0, 5]))
    def somebody_gives_a_run_another_priority(self, data: st.DataObject, priority: int) -> None:
        self.team.members[data.draw(st.sampled_from(sorted(self.team.members)))].edit(priority=priority)

    @rule(amount=st.sampled_from(AMOUNTS))
    def somebody_raises_the_amount(self, amount: str) -> None:
        if parse_micros(amount) > self.limit:
            self.team.board.edit(amount=amount)

    @rule()
    def the_operator_is_replaced(self) -> None:
        self.operator = Operator(self.team)

    @rule(ahead=st.integers(1, 4), after=st.booleans())
    def the_operator_is_about_to_die(self, ahead: int, after: bool) -> None:
        self.team.writes.crash_at, self.team.writes.crash_after = self.team.writes.count + ahead, after

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.operator = asyncio.run(a_second(self.team, self.operator))
            assert self.spent() <= self.limit + INTERVAL

    @property
    def limit(self) -> int:
        return parse_micros(self.team.board.body["spec"]["amount"])

    def spent(self) -> int:
        return self.team.spent(month_name(self.team.now))

    @invariant()
    def a_rule_that_holds_is_told(self) -> None:
        status = self.team.board.body.get("status")
        if status and status["month"] == month_name(self.team.now):
            assert (status["state"] == "WithinBudget") == (status["reached"] == [])

    def teardown(self) -> None:
        """At the end the operator looks once more, and knows what was spent to the micro."""
        self.team.writes.crash_at = None
        asyncio.run(self.operator.second())
        assert self.operator.spent() == self.spent()


LIVES = int(os.environ.get("VIDEOTRAIN_TEAM_LIVES", "12"))
BATCH = 25
"""Most lives of a test, so that no limit of time ends it."""
BATCHES = max(1, LIVES // BATCH)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_life_of_a_team_passes_its_budget(batch: int) -> None:
    life = seed(batch)(type(f"TeamLife{batch}", (TeamLife,), {}))  # a batch of its own, the same ones each time
    lives = settings(
        max_examples=LIVES // BATCHES,
        stateful_step_count=25,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(life, settings=lives)
