"""The keeper of team budgets, beside what others store and refuse: nothing of it ends the operator or invents money."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.processes import SECONDS
from support.team_budgets import budget_body

from videotrain_api.billing.document import RunBill, sealed
from videotrain_api.metrics import TRAINING_BUDGET_JUDGED, TRAINING_BUDGET_SPENT
from videotrain_api.money import format_micros
from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import BILL_KEY, LABEL_TEAM
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.manager import team_budgets as module
from videotrain_operator.manager.team_budgets import BudgetKeeper, account_of_run

NOW = datetime(2026, 11, 15, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def stored_budget(amount: str = "100", uid: str = "budget-1", **spec: Any) -> Json:
    body = budget_body(amount, **spec)
    body["metadata"] |= {"name": uid, "uid": uid, "generation": 1, "resourceVersion": "1"}
    return body


def in_month(month: str, micros: int) -> Json:
    return {"month": month, "totalMicros": micros, "total": format_micros(micros)}


def stored_run(uid: str, spent: int, rate: str = "0") -> Json:
    cost = {"currency": "USD", "totalMicros": spent, "ratePerHour": rate, "months": [in_month("2026-11", spent)]}
    return {
        "metadata": {"name": uid, "namespace": "ml", "uid": uid, "labels": {LABEL_TEAM: "video"}},
        "spec": {"priority": 0},
        "status": {"observedAt": rfc3339(NOW, "seconds"), "cost": cost},
    }


class World:
    """What a keeper reads and writes."""

    def __init__(self, *budgets: Json, runs: tuple[Json, ...] = (), namespaces: tuple[str, ...] = ()) -> None:
        self.now = NOW
        self.budgets, self.runs = {body["metadata"]["uid"]: body for body in budgets}, list(runs)
        self.held: set[str] = set()
        self.bills: list[Json] = []
        self.errors: list[Exception] = []
        self.events: list[str] = []
        self.refused: dict[str, Exception] = {}
        self.reading = asyncio.Event()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.keeper = BudgetKeeper(
            self,
            lambda: self.now,
            lambda: self.budgets.values(),
            lambda: self.runs,
            self.held.__contains__,
            self.read_bills,
            namespaces=namespaces,
            on_error=self.errors.append,
        )

    async def read_bills(self) -> list[Json]:
        listed = list(self.bills)
        self.reading.set()
        await self.may_read.wait()
        return listed

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        if name in self.refused:
            raise self.refused[name]
        body = self.budgets[name]
        version = str(int(resource_version) + 1)
        self.budgets[name] = body | {
            "status": json.loads(json.dumps(status)),
            "metadata": body["metadata"] | {"resourceVersion": version},
        }
        return self.budgets[name]

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        self.events.append(reason)

    async def pass_over(self, run: Json, ahead: int = 0) -> None:
        """A pass succeeded just now, and the keeper looks."""
        run["status"]["observedAt"] = rfc3339(self.now, "seconds")
        self.keeper.note(run, ahead)
        await self.keeper.look()

    def spent(self) -> dict[str, float]:
        return {labels[0]: value for metric, labels, value in self.keeper.samples() if metric is TRAINING_BUDGET_SPENT}

    def judged(self) -> dict[str, float]:
        return {labels[0]: value for metric, labels, value in self.keeper.samples() if metric is TRAINING_BUDGET_JUDGED}


def closed_bill(uid: str, micros: int, month: str = "2026-11") -> RunBill:
    return RunBill.model_validate(
        {
            "run": uid,
            "uid": uid,
            "namespace": "ml",
            "team": "video",
            "currency": "USD",
            "closed": True,
            "totalMicros": micros,
            "total": format_micros(micros),
            "months": [in_month(month, micros)],
            "phase": "Succeeded",
            "estimated": False,
            "stages": [],
            "rows": [],
            "asOf": rfc3339(NOW, "seconds"),
            **{key: {} for key in ("gpuMicrosecondsByBucket", "microsByBucket", "wasteMicrosByCause")},
        }
    )


async def test_a_rate_that_nobody_can_read_counts_as_nothing() -> None:
    run = stored_run("a", 5_000_000, rate="abc")
    account = account_of_run(run)
    assert account is not None and account.rate_micros_per_hour == 0
    world = World(stored_budget(), runs=(run,))
    await world.keeper.look()
    world.keeper.note(run, 0)
    assert world.spent() == {"budget-1": 5.0} and not world.errors


async def test_no_time_is_counted_twice_where_pods_were_looked_at_before_their_bill_was_made() -> None:
    """On an idle watch a pass knows pods of a minute ago, and bills them up to now."""
    run = stored_run("a", 5_000_000, rate="3.60")
    minute = timedelta(minutes=1)
    run["status"]["observedAt"] = rfc3339(NOW - minute, "seconds")
    run["status"]["cost"]["countedUntil"] = rfc3339(NOW, "seconds")
    world = World(stored_budget(), runs=(run,))
    world.held.add("a")
    await world.keeper.look()  # waits for a pass
    world.keeper.note(run, 120_000)
    await world.keeper.look()
    assert world.spent() == {"budget-1": 5.0}
    account = account_of_run(run, 120_000)
    assert account is not None
    assert account.ahead(NOW) == 120_000 and account.ahead(NOW + minute) == 60_000, "and none until it saved"
    world.now += minute
    await world.keeper.look()
    assert world.spent() == {"budget-1": 5.06}


async def test_the_rest_of_a_run_that_holds_nodes_again_costs_nothing() -> None:
    """Its bill has been the same since it was suspended, hours ago; the pass of now sees its new pods."""
    run = stored_run("a", 5_000_000, rate="3.60")
    run["status"]["observedAt"] = rfc3339(NOW, "seconds")
    run["status"]["cost"]["countedUntil"] = rfc3339(NOW - timedelta(hours=5), "seconds")
    world = World(stored_budget())
    world.held.add("a")
    await world.keeper.look()
    world.keeper.note(run, 0)
    await world.keeper.look()
    assert world.spent() == {"budget-1": 5.0}
    world.now += timedelta(minutes=1)
    await world.keeper.look()
    assert world.spent() == {"budget-1": 5.06}


async def test_whatever_goes_wrong_in_a_look_is_counted_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.001)
    world, looks = World(stored_budget()), asyncio.Event()

    async def broken() -> list[Json]:
        if len(world.errors) >= 2:
            looks.set()
        raise ValueError("nobody thought of it")

    world.keeper._read_bills = broken
    task = asyncio.create_task(world.keeper.keep())
    async with asyncio.timeout(SECONDS):
        await looks.wait()
    assert not task.done() and {str(error) for error in world.errors} == {"nobody thought of it"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_who_does_not_lead_any_more_tells_of_no_budget() -> None:
    world = World(stored_budget(), runs=(stored_run("a", 5),))
    task = asyncio.create_task(world.keeper.keep())
    async with asyncio.timeout(SECONDS):
        while not world.spent():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not world.spent()


async def test_a_budget_that_cannot_be_written_keeps_no_other_from_being_judged() -> None:
    world = World(stored_budget(), stored_budget(uid="budget-2"), runs=(stored_run("a", 5_000_000),))
    world.refused["budget-1"] = Conflict("it changed")
    await world.keeper.look()
    assert world.budgets["budget-2"]["status"]["spentMicros"] == 5_000_000
    assert "status" not in world.budgets["budget-1"] and world.errors == [world.refused["budget-1"]]


async def test_a_run_whose_passes_fail_costs_nothing_from_when_its_pods_were_seen_to_be_gone() -> None:
    run = stored_run("a", 1_000_000, rate="3.60")
    world = World(stored_budget(), runs=(run,))
    world.held.add("a")
    await world.keeper.look()
    await world.pass_over(run)
    world.now += HOUR
    await world.keeper.look()
    assert world.spent() == {"budget-1": 4.6}
    world.held.clear()
    await world.keeper.look()
    world.now += HOUR
    await world.keeper.look()
    assert world.spent() == {"budget-1": 4.6}, "its pods have gone"
    world.held.add("a")
    await world.pass_over(run)
    world.now += HOUR
    await world.keeper.look()
    assert world.spent() == {"budget-1": 4.6}, "by its own bill again, and an hour of new pods"


async def test_a_new_leader_counts_no_nodes_that_nobody_sees() -> None:
    run = stored_run("a", 1_000_000, rate="3.60")
    world = World(stored_budget(), runs=(run,))
    world.now += HOUR
    await world.keeper.look()
    world.now += HOUR
    await world.keeper.look()
    assert world.spent() == {"budget-1": 1.0}


async def test_a_bill_that_is_closed_while_the_others_are_read_counts() -> None:
    world = World(stored_budget())
    world.may_read.clear()
    looking = asyncio.create_task(world.keeper.look())
    async with asyncio.timeout(SECONDS):
        await world.reading.wait()
    world.keeper.note_bill(closed_bill("a", 2_000_000))
    world.may_read.set()
    await looking
    assert world.spent() == {"budget-1": 2.0}


async def test_runs_of_months_long_past_are_told_of_no_more() -> None:
    old = closed_bill("old", 2_000_000, "2026-08").model_copy(update={"currency": "EUR"})
    world = World(stored_budget())
    world.bills = [{"metadata": {"name": "old"}, "data": {BILL_KEY: json.dumps(sealed(old))}}]
    await world.keeper.look()
    kinds = {one["type"]: one["status"] for one in world.budgets["budget-1"]["status"]["conditions"]}
    assert kinds["AllCounted"] == "True" and not world.events


async def reached_budget() -> World:
    """Its only rule holds, for everybody."""
    world = World(stored_budget("1"), runs=(stored_run("a", 5_000_000),))
    for _ in range(3):
        await world.keeper.look()
        world.now += timedelta(seconds=2)
    assert held_rules(world) == ["Notify", "CheckpointAndSuspend"]
    return world


def held_rules(world: World) -> list[str]:
    (budget,) = world.keeper.budgets() or ()
    return [rule.action for rule in budget.holding(0)]


def newer(world: World, **changes: Any) -> Json:
    """Another version of the operator, or of the definition, stored more."""
    body = world.budgets["budget-1"]
    version = str(int(body["metadata"]["resourceVersion"]) + 1)
    world.budgets["budget-1"] = body | changes | {"metadata": body["metadata"] | {"resourceVersion": version}}
    return world.budgets["budget-1"]


async def test_a_field_of_a_newer_version_in_the_status_lets_nobody_go_on() -> None:
    world = await reached_budget()
    status = world.budgets["budget-1"]["status"]
    rules = [rule | {"newer": 1} for rule in status["reached"]]
    newer(world, status=status | {"newer": {"a": 1}, "reached": rules})
    assert held_rules(world) == ["Notify", "CheckpointAndSuspend"]
    await world.keeper.look()
    assert held_rules(world) == ["Notify", "CheckpointAndSuspend"] and not world.errors
    assert world.events == ["RuleReached"] * 2, "it is no news"


async def test_a_spec_of_a_newer_version_is_not_judged_and_what_held_goes_on_until_the_month_is_over() -> None:
    world = await reached_budget()
    before = world.budgets["budget-1"]
    newer(world, spec=before["spec"] | {"amount": "1000", "newer": True})
    await world.keeper.look()
    status = world.budgets["budget-1"]["status"]
    assert status["conditions"][0]["reason"] == "Unreadable" and "newer" in status["conditions"][0]["message"]
    assert {k: v for k, v in status.items() if k != "conditions"} == {
        k: v for k, v in before["status"].items() if k != "conditions"
    }
    assert held_rules(world) == ["Notify", "CheckpointAndSuspend"]
    assert not world.spent(), "nobody knows it"
    version = world.budgets["budget-1"]["metadata"]["resourceVersion"]
    await world.keeper.look()
    assert world.budgets["budget-1"]["metadata"]["resourceVersion"] == version, "said once"
    world.now += timedelta(days=30)
    assert world.keeper.budgets() == ()


async def test_a_budget_of_which_nobody_can_read_whom_it_covers_holds_for_nobody() -> None:
    world = await reached_budget()
    newer(world, spec={"team": {"newer": True}, "amount": "1"})
    assert world.keeper.budgets() == ()


async def test_one_wrong_reading_stops_nobody_for_a_month() -> None:
    run = stored_run("a", 5_000_000, rate="3.60")
    world = World(stored_budget("1"), runs=(run,))
    world.held.add("a")
    await world.keeper.look()
    await world.pass_over(run)
    world.now += timedelta(seconds=10)
    await world.keeper.look()
    assert held_rules(world) == [], "of the same bill"
    run["status"]["cost"]["months"] = [in_month("2026-11", 500_000)]
    await world.pass_over(run)
    world.now += timedelta(seconds=30)
    await world.pass_over(run)
    assert held_rules(world) == [], "the next bill said less"
    run["status"]["cost"]["months"] = [in_month("2026-11", 5_000_000)]
    await world.pass_over(run)
    await world.pass_over(run)
    assert held_rules(world) == [], "of the same moment"
    world.now += timedelta(seconds=1)
    await world.pass_over(run)
    assert held_rules(world) == ["Notify", "CheckpointAndSuspend"]


async def test_a_lowered_amount_lets_nobody_go_on_and_is_no_news_and_a_raised_one_does() -> None:
    world = await reached_budget()
    newer(world, spec=budget_body("0.50")["spec"])
    world.runs[0]["status"]["cost"]["months"] = [in_month("2026-11", 400_000)]
    world.keeper.note(world.runs[0], 0)
    await world.keeper.look()
    assert held_rules(world) == ["Notify", "CheckpointAndSuspend"]
    assert world.events == ["RuleReached"] * 2
    newer(world, spec=budget_body("0.60")["spec"])
    await world.keeper.look()
    assert held_rules(world) == [] and world.events[2:] == ["RulesLifted"]


async def test_of_two_operators_one_judges_a_budget_and_what_both_cover_says_so() -> None:
    here = World(
        stored_budget(uid="one", namespaces=["ml"]),
        stored_budget(uid="both", namespaces=["ml", "web"]),
        stored_budget(uid="all"),
        stored_budget(uid="elsewhere", namespaces=["lab"]),
        runs=(stored_run("a", 5_000_000),),
        namespaces=("ml", "ml-2"),
    )
    there = World(namespaces=("web",))
    there.budgets = here.budgets
    for _ in range(3):
        for world in (here, there):
            world.now = here.now = there.now = here.now + HOUR / 60
            await world.keeper.look()
            assert not world.errors
    assert here.judged() == {"one": 1.0, "both": 0.0, "all": 0.0} and there.judged() == {"both": 0.0, "all": 0.0}
    assert here.budgets["one"]["status"]["spentMicros"] == 5_000_000
    assert "status" not in here.budgets["elsewhere"]
    for name in ("both", "all"):
        (condition,) = here.budgets[name]["status"]["conditions"]
        assert (condition["status"], condition["reason"]) == ("Unknown", "OtherNamespaces")
        assert "spec.namespaces" in condition["message"] and "--namespaces" in condition["message"]
        assert here.budgets[name]["metadata"]["resourceVersion"] == "2", "nobody writes over the other's word"
    assert [one.metadata.name for one in here.keeper.budgets() or ()] == ["one"]


async def test_what_a_budget_of_several_operators_stopped_stays_so_until_the_month_is_over() -> None:
    """Before it was judged by one that served all namespaces."""
    world = World(stored_budget(amount="4", uid="all"), runs=(stored_run("a", 5_000_000),))
    for _ in range(2):
        await world.keeper.look()
        world.now += HOUR / 60
    assert world.budgets["all"]["status"]["reached"]
    narrow = World(namespaces=("ml",))
    narrow.budgets, narrow.now = world.budgets, world.now
    await narrow.keeper.look()
    kept = narrow.keeper.budgets()
    assert kept is not None and [*kept[0].holding(0)]
    narrow.now += 31 * 24 * HOUR
    await narrow.keeper.look()
    assert narrow.keeper.budgets() == ()
