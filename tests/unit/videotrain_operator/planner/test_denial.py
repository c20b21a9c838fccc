"""Access that the object store denies: never the end of a run, and never a run that waits without saying so."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from support.planner_builders import agent, at, condition, failed, manifest, pod, run_of, saved, seen
from unit.videotrain_operator.planner.test_decisions import CONFIG, STAGE, answers, carrying, progress, running

from videotrain_api.vocabulary import ExitCode, Phase
from videotrain_operator.planner.decision import Plan
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.plan import plan

ANSWER = "access denied by https://s3: RequestTimeTooSkewed"


def go(status: dict[str, Any], seconds: float, *pods: PodView, agents: Any = None, **spec: Any) -> Plan:
    body = manifest(**spec) | {"status": status}
    observed = seen(*pods, agents=agents or {}, config_maps=frozenset({CONFIG}), roster=carrying(status["generation"]))
    return plan(run_of(body), observed, at(seconds))


def trio() -> list[PodView]:
    return [pod(i) for i in range(3)]


def denials(number: int, seconds: float, *indexes: int) -> dict[str, Any]:
    return {
        f"demo-w{i}": agent(i, failed(number, 7, ExitCode.PERMISSION, at(seconds), ANSWER), at(seconds))
        for i in indexes
    }


def end(number: int, seconds: float, *indexes: int, before: dict[str, Any] | None = None, **spec: Any) -> Plan:
    """The pass that sees the members `indexes` of a generation denied."""
    status = running(number, facts=progress(number, 7)) | (before or {})
    return go(status, seconds, *trio(), agents=denials(number, seconds, *indexes), **spec)


def test_one_node_that_is_denied_is_replaced() -> None:
    decided = end(1, 20, 1)
    assert [node.name for node in decided.status.suspect_nodes] == [trio()[1].node]
    assert decided.status.restarts.infrastructure == 1
    assert decided.status.phase not in (Phase.SUSPENDED, Phase.SUSPENDING, Phase.FAILED)
    assert decided.status.storage_denied is not None and decided.status.storage_denied.until is None


def is_waiting(decided: Plan, until: datetime) -> None:
    assert decided.status.storage_denied is not None and decided.status.storage_denied.until == until
    suspended = condition(decided, "Suspended")
    assert (suspended.status, suspended.reason) == ("True", "StorageDenied")
    assert ANSWER in suspended.message and f"{until:%H:%M:%S} UTC" in suspended.message
    assert decided.status.completion_time is None and condition(decided, "Failed") is None


def test_a_world_that_is_denied_altogether_is_suspended_at_once_and_says_why() -> None:
    decided = end(1, 20, 0, 1, 2)
    is_waiting(decided, at(80))
    assert not decided.status.suspect_nodes, "no node is to blame"
    assert next((e.type, e.reason) for e in decided.events) == ("Warning", "StorageDenied")
    later = go(decided.status.to_wire(), 25, *trio())
    assert len(later.delete) == 3 or later.apply, "its nodes are released"


def test_a_second_denial_on_other_nodes_suspends_with_pauses_that_double_up_to_an_hour() -> None:
    status = end(1, 20, 1).status.to_wire()
    seconds = 100.0
    for pause in (60, 120, 240, 480, 960, 1920, 3600, 3600):
        number = status["generation"] + 1
        decided = end(number, seconds, 0, before={"storageDenied": status["storageDenied"]})
        is_waiting(decided, at(seconds + pause))
        status, seconds = decided.status.to_wire(), seconds + pause + 1000


def waiting(**more: Any) -> dict[str, Any]:
    return end(1, 20, 0, 1, 2).status.to_wire() | more


def test_a_run_that_waits_holds_no_pods_and_looks_again_when_it_is_time() -> None:
    decided = go(waiting(), 50)
    is_waiting(decided, at(80))
    assert decided.status.phase == Phase.SUSPENDED
    assert not [item for item in decided.apply if item["kind"] == "Pod"]
    assert decided.requeue_seconds == 30


def test_a_run_that_waited_long_enough_goes_on_by_itself() -> None:
    decided = go(waiting(), 80)
    assert condition(decided, "Suspended").status == "False"
    assert len([item for item in decided.apply if item["kind"] == "Pod"]) == 3
    assert "Resumed" in [event.reason for event in decided.events]


def test_suspending_a_run_that_waits_and_taking_that_back_makes_it_go_on_at_once() -> None:
    suspended = go(waiting(), 30, suspend=True)
    assert condition(suspended, "Suspended").reason == "SuspendedByUser"
    resumed = go(suspended.status.to_wire(), 40)
    assert condition(resumed, "Suspended").status == "False"
    assert resumed.status.storage_denied is not None, "the next pause is longer still"


def test_a_checkpoint_that_was_saved_ends_the_denial() -> None:
    before = {"storageDenied": {"stage": "train", "savedStep": 0, "pauses": 4, "message": ANSWER}}
    facts = progress(2, 12, saved=[saved(10, 30)])
    status = running(2, facts=facts) | before | {"stages": [STAGE | {"savedStep": 10}]}
    decided = go(status, 40, *trio(), agents=answers(facts, 40))
    assert decided.status.storage_denied is None


@pytest.mark.parametrize("limit", [0, 1])
def test_used_up_restarts_do_not_fail_a_run_that_is_denied(limit: int) -> None:
    used = {"restartsInStage": {"infrastructure": limit}, "restarts": {"infrastructure": limit}}
    is_waiting(end(1, 20, 1, before=used, failurePolicy={"limits": {"infrastructure": limit}}), at(80))


def test_a_rule_of_the_user_wins() -> None:
    rules = [{"exitCodes": [int(ExitCode.PERMISSION)], "action": "Fail"}]
    decided = end(1, 20, 0, 1, 2, failurePolicy={"rules": rules})
    assert condition(decided, "Failed").status == "True"


def test_the_start_deadline_does_not_run_while_a_run_waits_for_storage() -> None:
    never_began = {"stages": [STAGE | {"step": 0}], "startTime": at(0).isoformat()}
    status = waiting(**never_began)
    paused = status
    for seconds in (70, 75):  # a deadline needs two passes
        decided = go(paused, seconds, startDeadlineSeconds=60)
        paused = decided.status.to_wire()
        assert condition(decided, "Failed") is None
    for seconds in (80, 100, 139):
        decided = go(paused, seconds, startDeadlineSeconds=60)
        paused = decided.status.to_wire()
        assert condition(decided, "Failed") is None, "the deadline begins with the end of the pause"
    for seconds in (141, 143, 160, 200):
        decided = go(paused, seconds, startDeadlineSeconds=60)
        paused = decided.status.to_wire()
    assert condition(decided, "Failed").reason == "StartDeadlineExceeded"
