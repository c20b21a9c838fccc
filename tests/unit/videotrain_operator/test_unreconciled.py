"""A run whose passes fail is told of where people look, and is held to its limits all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.planner_builders import at, manifest, pod, train_stage

from videotrain_api.schema import Json
from videotrain_operator import reconcile as reconcile_module
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.planner.limits import overdue_pods
from videotrain_operator.reconcile import RunKey, RunLoop
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.world import Pace
from videotrain_operator.telemetry import OperatorMetrics

KEY = RunKey(namespace="default", name="demo")


class Rig:
    """A loop over a simulated run, in which time goes on with each pass; `broken` makes every pass fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, time_untrusted: str = "", **spec: Any) -> None:
        self.cluster = SimulatedCluster(manifest(stages=[train_stage("first", 500)], **spec), nodes=4, pace=Pace())
        self.broken = False
        self.passes = 0
        self.failures: list[int] = []
        self.loop = RunLoop(
            self.cluster,
            KEY,
            self.cluster,
            clock=lambda: self.cluster.now,
            time_untrusted=lambda: time_untrusted,
            on_error=self._note,
        )
        self._plan = reconcile_module.plan
        monkeypatch.setattr(reconcile_module, "plan", self._plan_or_fail)
        monkeypatch.setattr(self.loop, "_pause", self._pause)
        self.limit = 0

    def _plan_or_fail(self, *given: Any) -> Any:
        if self.broken:
            raise KeyError("a fault of the operator")
        return self._plan(*given)

    def _note(self, error: Exception) -> None:
        self.failures.append(self.loop.failures)

    async def _pause(self, seconds: float) -> None:
        self.cluster.tick()
        self.passes += 1
        if self.passes >= self.limit:
            raise asyncio.CancelledError

    async def passes_of(self, count: int) -> None:
        self.limit = self.passes + count
        with pytest.raises(asyncio.CancelledError):
            await self.loop.run()

    @property
    def reconciled(self) -> Json | None:
        conditions = self.cluster.run["status"].get("conditions", [])
        return next((item for item in conditions if item["type"] == "Reconciled"), None)

    def told(self) -> list[str]:
        return [reason for reason, _ in self.cluster.events]


async def test_three_failed_passes_are_a_condition_and_one_event_until_a_pass_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch)
    await rig.passes_of(10)
    rig.broken = True
    await rig.passes_of(2)
    assert rig.reconciled is None
    before = {key: value for key, value in rig.cluster.run["status"].items() if key != "conditions"}
    await rig.passes_of(4)
    assert rig.reconciled is not None
    assert (rig.reconciled["status"], rig.reconciled["reason"]) == ("False", "PassesFail")
    assert "a fault of the operator" in rig.reconciled["message"]
    assert rig.told().count("PassesFail") == 1
    assert {key: value for key, value in rig.cluster.run["status"].items() if key != "conditions"} == before
    rig.broken = False
    await rig.passes_of(3)
    assert (rig.reconciled or {})["status"] == "True"
    assert rig.loop.failures == 0


async def test_while_the_status_is_refused_too_the_event_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event waits for the end of an outage: one for each attempt would come then, all of them together."""
    rig = Rig(monkeypatch)
    await rig.passes_of(10)
    replace_status, refused = rig.cluster.replace_status, []

    async def refuse(*given: Any) -> Json:
        refused.append(given)
        raise Conflict("somebody wrote")

    rig.broken = True
    monkeypatch.setattr(rig.cluster, "replace_status", refuse)
    await rig.passes_of(8)
    assert len(refused) > 2 and rig.told().count("PassesFail") == 1
    monkeypatch.setattr(rig.cluster, "replace_status", replace_status)
    await rig.passes_of(1)
    assert (rig.reconciled or {})["reason"] == "PassesFail" and rig.told().count("PassesFail") == 1


@pytest.mark.parametrize(
    "limit",
    [
        {"suspend": True},
        {"activeDeadlineSeconds": 15},
        {"budget": {"maxCost": "0.05"}},
        {"budget": {"maxGpuHours": 0.01}},
    ],
    ids=["suspend", "deadline", "money", "hours"],
)
async def test_limits_hold_while_every_pass_fails(monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any]) -> None:
    rig = Rig(monkeypatch)
    await rig.passes_of(10)
    assert len(rig.cluster.pods()) == 3
    rig.broken = True
    rig.cluster.edit(**limit)
    await rig.passes_of(40)
    assert rig.cluster.pods() == []


@pytest.mark.parametrize("broken", [True, False], ids=["passes fail", "the spec does not parse"])
async def test_no_pod_is_taken_by_an_untrusted_time(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    rig = Rig(monkeypatch, time_untrusted="the clock jumped")
    await rig.passes_of(10)
    rig.broken = broken
    odd = {} if broken else {"fieldOfALaterVersion": 1}
    rig.cluster.edit(activeDeadlineSeconds=15, budget={"maxCost": "0.05"}, **odd)
    await rig.passes_of(40)
    assert len(rig.cluster.pods()) == 3
    rig.cluster.edit(suspend=True)
    await rig.passes_of(40)
    assert rig.cluster.pods() == []


async def test_no_limit_ends_no_pod_while_passes_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, budget={"maxCost": "0.01", "action": "Notify"}, activeDeadlineSeconds=10_000)
    await rig.passes_of(10)
    rig.broken = True
    await rig.passes_of(40)
    assert len(rig.cluster.pods()) == 3


async def test_a_spec_of_a_later_version_is_held_to_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    await rig.passes_of(10)
    rig.cluster.edit(fieldOfALaterVersion=1, activeDeadlineSeconds=20)
    await rig.passes_of(40)
    assert rig.cluster.pods() == []


@pytest.mark.parametrize(("counted_until", "left"), [(100, True), (40, False)], ids=["counted", "not counted"])
def test_what_the_bill_counts_already_is_not_counted_again(counted_until: float, left: bool) -> None:
    """Pods were seen at 40 s; what they held since is in the bill up to `counted_until`."""
    cost = {"currency": "USD", "totalMicros": 1_000_000, "countedUntil": at(counted_until).isoformat()}
    run = manifest(budget={"maxCost": "1.05"}) | {"status": {"observedAt": at(40).isoformat(), "cost": cost}}
    assert (overdue_pods(run, [pod(0)], at(101)) == ()) == left


def test_the_metric_follows_the_passes() -> None:
    metrics = OperatorMetrics()
    run = {"metadata": {"name": "demo", "namespace": "team", "uid": "u"}, "spec": {}, "status": {}}
    metrics.note_unreconciled("team", "demo")
    assert b'videotrain_run_reconciled{namespace="team",run="demo"} 0.0' in metrics.text()
    metrics.note_pass(run, {"ofALaterVersion": 1}, 0.1, [], unreadable=2)
    text = metrics.text()
    assert b'videotrain_run_reconciled{namespace="team",run="demo"} 1.0' in text
    assert b'videotrain_run_unreadable_values{namespace="team",run="demo"} 2.0' in text
    metrics.forget("team", "demo")
    assert b"videotrain_run_reconciled{" not in metrics.text()
