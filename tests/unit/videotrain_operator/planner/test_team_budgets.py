"""Runs of a team under its monthly budget, with the real passes, and an operator that dies at any write."""

from __future__ import annotations

import os
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.team_budgets import EVERY_STEPS, GPU_SECOND, Operator, Team, a_second, budget_body, live, reached, rules

from videotrain_api.money import parse_micros

LIFE = 32
"""Seconds until all three runs are stopped."""
CALM = 16
"""Seconds by which a new operator may be behind: it writes a status in which only words changed ten later."""
STRIDE = 1 if os.environ.get("VIDEOTRAIN_EVERY_WRITE") else 29
"""Every write would take a minute."""
STOP = (100, "CheckpointAndSuspend", None)
INTERVAL = EVERY_STEPS * 2 * GPU_SECOND
"""What one node of two GPUs costs from one checkpoint to the next."""


def limit(team: Team) -> int:
    return parse_micros(team.board.body["spec"]["amount"])


def three_runs(amount: str = "0.150") -> Team:
    """Two of priority 0 and one of 5, a node each."""
    team = Team(budget_body(amount, rules((50, "Notify", None), STOP)))
    team.add("low-1"), team.add("low-2"), team.add("high", 5)
    return team


async def test_runs_of_low_priority_save_first_and_the_budget_is_never_passed_by_more_than_an_interval() -> None:
    team = three_runs()
    operator, order = Operator(team), []
    for _ in range(80):
        operator = await a_second(team, operator)
        stopped = {name for name, phase in team.phases().items() if phase.startswith("Suspend")}
        if stopped and (not order or order[-1] != stopped):
            order.append(stopped)
    assert order[0] == {"low-1", "low-2"} and order[-1] == {"low-1", "low-2", "high"}
    spent = team.spent("2026-01")
    assert limit(team) - 3 * INTERVAL - 60 * GPU_SECOND <= spent <= limit(team) + INTERVAL
    assert all(cluster.rate() == 0 for cluster in team.all())
    assert all(team.status(name).stages[0].saved_step == team.status(name).stages[0].step > 0 for name in team.members)
    assert [reason for reason, _ in team.board.events] == ["RuleReached"] * 3, "Notify, the lower ones, everybody"


async def test_the_status_of_the_budget_is_what_was_spent_to_the_micro() -> None:
    team = three_runs("100")
    team.board.edit(rules=rules(STOP))
    await live(team, 75, {12: lambda t: t.delete("low-1")})
    operator = Operator(team)
    await operator.second()
    assert operator.spent() == team.spent("2026-01") > 0
    assert team.board.status.runs == 3, "with the one that was deleted"


async def test_an_operator_that_dies_at_any_write_changes_nothing() -> None:
    team, snapshots = three_runs("0.100"), []
    operator = Operator(team)
    for _ in range(LIFE + CALM):
        snapshots.append((team.writes.count, pickle.dumps(team)))
        operator = await a_second(team, operator)
    want = ending(team)
    last = snapshots[LIFE][0]
    assert [*team.phases().values()] == ["Suspended"] * 3 and last > 40
    for crash_at in range(1, last + 1, STRIDE):
        for after in (False, True):
            second, data = [(n, data) for n, (count, data) in enumerate(snapshots) if count < crash_at][-1]
            again: Team = pickle.loads(data)
            again.writes.crash_at, again.writes.crash_after = crash_at, after
            await live(again, LIFE + CALM - second)
            assert ending(again) == want, f"crash {'after' if after else 'before'} write {crash_at}"


def ending(team: Team) -> Any:
    assert team.spent("2026-01") <= limit(team) + INTERVAL
    return team.phases(), [*reached(team)]


async def test_in_the_next_month_they_go_on() -> None:
    team = Team(budget_body("0.080", rules(STOP)), start=datetime(2026, 1, 31, 23, 58, 0, tzinfo=UTC))
    team.add("one"), team.add("two")
    operator = await live(team, 40)
    assert set(team.phases().values()) == {"Suspended"}
    january = team.spent("2026-01")
    team.jump(datetime(2026, 2, 1, 0, 0, 1, tzinfo=UTC))
    for _ in range(6):
        operator = await a_second(team, operator)
    assert team.board.status.month == "2026-02" and not team.board.status.reached
    assert all(cluster.rate() > 0 for cluster in team.all())
    await operator.second()
    assert (team.spent("2026-01"), operator.spent()) == (january, team.spent("2026-02"))
    assert (team.board.events[-1][0], team.board.events[-1][1][:19]) == ("MonthBegins", "2026-02 begins; 0.0")


async def test_money_of_a_run_that_crosses_the_month_is_in_the_month_in_which_it_was_spent() -> None:
    start = datetime(2026, 1, 31, 23, 59, 40, tzinfo=UTC)
    team = Team(budget_body("100", rules(STOP)), start=start)
    team.add("one")
    await live(team, 45, {30: lambda t: t.members["one"].edit(suspend=True)})
    operator = Operator(team)
    await operator.second()
    months = {one.month: one.total_micros for one in team.status("one").cost.months}  # type: ignore[union-attr]
    assert months == {month: team.spent(month) for month in ("2026-01", "2026-02")}
    assert min(months.values()) > 0 and operator.spent() == months["2026-02"]


async def test_new_runs_are_refused_and_older_ones_go_on() -> None:
    team = Team(budget_body("1", rules((2, "RefuseNew", None))))
    team.add("old")
    await live(team, 30, {25: lambda t: t.add("new")})
    assert team.phases() == {"old": "Running", "new": "Suspended"}
    assert not team.members["new"].held
    condition = {c.type: c for c in team.status("new").conditions}["TeamBudgetOK"]
    assert condition.message == (
        "TrainingBudget video-month (1 USD a month): RefuseNew at 2 % holds for this run until 2026-02-01T00:00:00Z; "
        "raise its spec.amount, or spec.priority of this run"
    )
    team.board.edit(amount="100")
    await live(team, 10)
    assert team.phases()["new"] in ("Starting", "Running") and team.board.events[-1][0] == "RulesLifted"


async def test_lower_priorities_shrink_and_others_keep_their_nodes() -> None:
    team = Team(budget_body("1", rules((5, "Shrink", 5))))
    team.add("low", 0, nodes=2), team.add("high", 5, nodes=2)
    await live(team, 40)
    assert {name: team.status(name).nodes.current for name in team.members} == {"low": 1, "high": 2}


async def test_whoever_raises_the_priority_of_a_run_lets_it_go_on() -> None:
    team = Team(budget_body("1", rules((2, "CheckpointAndSuspend", 5))))
    team.add("one")
    operator = await live(team, 30)
    assert team.phases() == {"one": "Suspended"}
    team.members["one"].edit(priority=5)
    for _ in range(6):
        operator = await a_second(team, operator)
    assert team.members["one"].rate() > 0


async def test_a_run_that_is_priced_in_another_currency_does_not_begin() -> None:
    team = Team(budget_body("1", currency="EUR"))
    team.add("one")
    await live(team, 5)
    assert team.phases() == {"one": "Suspended"} and not team.members["one"].held
    (message,) = [c.message for c in team.status("one").conditions if c.type == "TeamBudgetOK"]
    assert message.startswith("spec.pool.currency USD: TrainingBudget video-month counts EUR")


async def test_runs_of_others_are_neither_counted_nor_stopped() -> None:
    team = Team(budget_body("0.001", rules(STOP), team="audio"))
    team.add("one")
    await live(team, 20)
    assert team.phases() == {"one": "Running"} and team.board.status.spent_micros == 0
    assert not [c for c in team.status("one").conditions if c.type == "TeamBudgetOK"]


async def test_a_new_leader_judges_nothing_by_a_status_that_is_hours_old() -> None:
    """Nodes that were given back while nobody looked have not cost what they did when somebody looked last."""
    team = Team(budget_body("0.500", rules(STOP)))
    team.add("one", steps=20)
    await live(team, 12)
    cluster = team.members["one"]
    for pod in cluster.pods():
        cluster.force_delete(pod["metadata"]["name"])
    team.jump(team.now + timedelta(hours=3))
    operator = Operator(team)
    await operator.keeper.look()
    await operator.keeper.look()
    assert not team.board.status.reached, "nothing before a pass"
    await operator.second()
    assert not team.board.status.reached


async def test_a_run_that_waits_for_its_first_node_is_new() -> None:
    team = Team(budget_body("1", rules((2, "RefuseNew", None))))
    waiting = team.add("waiting")
    waiting.draining |= set(waiting.nodes)
    team.add("old")
    await live(team, 30, {25: lambda t: t.members["waiting"].draining.clear()})
    assert team.phases() == {"old": "Running", "waiting": "Suspended"}
    assert not waiting.held


@pytest.mark.parametrize("action", ["CheckpointAndSuspend", "Shrink"])
async def test_what_a_budget_asked_of_a_run_goes_on_while_nobody_can_read_budgets(action: str) -> None:
    team = Team(budget_body("1", rules((3, action, None))))
    team.add("one", nodes=2)
    await live(team, 30)
    operator = Operator(team)
    operator.keeper._known = lambda: False
    team.board.edit(amount="100")
    before = team.status("one")
    for _ in range(10):
        operator = await a_second(team, operator)
    after = team.status("one")
    assert (after.phase, after.nodes.current) == (before.phase, before.nodes.current)
    assert before.nodes.current == (1 if action == "Shrink" else 0)
    operator.keeper._known = lambda: True
    for _ in range(12):
        operator = await a_second(team, operator)
    assert team.members["one"].rate() == 4 * GPU_SECOND, "it was raised meanwhile"
