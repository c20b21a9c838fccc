"""Single decisions of the planner."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.planner_builders import (
    RUN_UID,
    agent,
    at,
    condition,
    failed,
    manifest,
    pod,
    progress,
    roster_in,
    run_of,
    saved,
    seen,
)

from videotrain_api.frozen_config import config_data
from videotrain_api.records import Roster, RosterMember
from videotrain_api.render.merge import strategic_merge
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.resource.trainrun import FailureRule
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import FROZEN_SPEC_KEY, PORT_RENDEZVOUS, RENDEZVOUS_PORTS, ExitCode, GenerationReason
from videotrain_operator.planner.decision import Plan
from videotrain_operator.planner.faults import Fault, pod_fault, root_of, worker_fault
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.plan import plan, plan_refusal
from videotrain_operator.planner.progress import Report, merge
from videotrain_operator.planner.report import LONGEST_LOOK_SECONDS

CONFIG = "demo-config-frozen"
STAGE = {"name": "train", "task": "train", "state": "Running", "configHash": "0" * 16, "totalSteps": 100}


def running(number: int = 1, members: tuple[int, ...] = (0, 1, 2), facts: Any = None, **more: Any) -> dict[str, Any]:
    """Status of a run whose generation trains."""
    generation = {
        "number": number,
        "stage": "train",
        "reason": "Started",
        "members": [f"demo-w{i}" for i in members],
        "worldSize": 2 * len(members),
        "gpus": 2 * len(members),
        "createdAt": "2026-01-01T12:00:01Z",
    }
    if facts is not None:
        generation["progress"] = facts.to_wire()
    base = {"configMap": CONFIG, "generation": number, "stages": [STAGE], "observedGeneration": 1}
    base["unconfirmed"] = {"StartTimeout": "2026-01-01T12:00:02Z"}  # the pass before came to it, too
    return base | {"generations": [generation | more]}


def carrying(number: int, members: tuple[int, ...] = (0, 1, 2), action: str = "run") -> Roster:
    people = [RosterMember(pod=f"demo-w{i}", address=f"10.0.0.{i + 1}", uid=f"uid-{i}") for i in members]
    return Roster(
        run_uid=RUN_UID,
        generation=number,
        action=action,
        stage="train",
        config_hash="0" * 16,
        reason="Started",
        members=people,
        port=PORT_RENDEZVOUS,
        processes_per_node=2,
        created_at=at(1),
    )


def decide(
    status: dict[str, Any] | None, observed: Observed, seconds: float, *, spoiled: bool = False, **spec: Any
) -> Plan:
    """The plan for a run whose roster is that of its newest generation, or `spoiled`."""
    body = manifest(**spec)
    if status is not None:
        body["status"] = status
        for last in () if spoiled or observed.roster else status["generations"][-1:]:
            members = tuple(int(n.split("-w")[1]) for n in GenerationStatus.from_wire(last).members)
            observed = replace(observed, roster=carrying(last["number"], members))
    return plan(run_of(body), replace(observed, config_maps=frozenset({CONFIG})), at(seconds))


def trio(**more: Any) -> list[PodView]:
    return [pod(i, **more) for i in range(3)]


def answers(facts: Any, seconds: float, *indexes: int) -> dict[str, Any]:
    return {f"demo-w{i}": agent(i, facts, at(seconds)) for i in indexes or (0, 1, 2)}


# Rosters.


@pytest.mark.parametrize("number", [1, 63, 64, 200])
def test_each_generation_uses_another_rendezvous_port(number: int) -> None:
    ended = running(number, endCause="drained", endReason="Grow")
    decided = decide(ended, seen(*(pod(i) for i in range(3))), 50)
    roster = roster_in(decided)
    assert roster is not None and roster.generation == number + 1
    assert roster.port == PORT_RENDEZVOUS + (number + 1) % RENDEZVOUS_PORTS


def test_a_generation_number_is_used_once_even_after_a_stop() -> None:
    status = running(endCause="drained", endReason="Suspended") | {"generation": 9}
    roster = roster_in(decide(status, seen(*(pod(i) for i in range(3))), 50))
    assert roster is not None and roster.generation == 10


def test_a_replacement_does_not_get_the_roster_of_the_pod_that_it_replaces() -> None:
    late = pod(1, uid="uid-1b", created_at=at(30), bound_at=at(31), started_at=at(32))
    status = running(2, (0, 2), facts=progress(2, 5))
    pods = [pod(0), late, pod(2)]
    decided = decide(status, seen(*pods, agents=answers(progress(2, 5), 40, 0, 2)), 40)
    assert roster_in(decided) is None


@pytest.mark.parametrize("version", ["7", None])
def test_a_roster_that_was_removed_or_spoiled_is_written_again(version: str | None) -> None:
    observed = seen(*trio(), agents=answers(progress(1, 5), 11), roster_resource_version=version)
    decided = decide(running(), observed, 11, spoiled=True)
    roster = roster_in(decided)
    assert roster == carrying(1).model_copy(update={"port": PORT_RENDEZVOUS + 1})
    assert decided.status.generation == 1


def test_after_a_removed_roster_no_number_is_used_again_that_an_agent_has_seen() -> None:
    """An operator published generation 2 and died; then somebody removed the roster, which alone knew of it."""
    lost = {f"demo-w{i}": agent(i, progress(2, 5), at(50)) for i in range(3)}
    ended = running(endCause="hang", endReason="Hang")
    roster = roster_in(decide(ended, seen(*trio(), agents=lost), 50, spoiled=True))
    assert roster is not None and roster.generation == 3


def test_an_edited_list_of_members_is_put_right() -> None:
    edited = carrying(1, (0, 2))
    decided = decide(running(), seen(*trio(), agents=answers(progress(1, 5), 11), roster=edited), 11)
    roster = roster_in(decided)
    assert roster is not None and [member.uid for member in roster.members] == ["uid-0", "uid-1", "uid-2"]


def test_a_faulty_world_is_killed_and_a_healthy_one_drained() -> None:
    for cause, drain in (("hang", False), ("application", False), ("drained", True), ("preemption", True)):
        ended = running(endCause=cause, endReason="Shrink")
        roster = roster_in(decide(ended, seen(*trio()), 50))
        assert roster is not None and roster.drain is drain


def test_a_roster_carries_the_newest_step_that_any_generation_has_saved() -> None:
    first = running(endCause="hang", endReason="Hang", facts=progress(1, 7, saved=[saved(5, 10)]))
    second = decide(first, seen(*trio()), 50)
    assert second.status.stages[0].saved_step == 5
    assert roster_in(second) is not None and roster_in(second).saved_step == 5  # type: ignore[union-attr]


@pytest.mark.parametrize(("allowed", "size"), [([1, 2], 2), ([1, 3], 3), ([2], 2), (None, 3)])
def test_the_world_has_an_allowed_size(allowed: list[int] | None, size: int) -> None:
    nodes = {"min": 1, "max": 3} | ({"allowed": allowed} if allowed else {})
    roster = roster_in(decide(None, seen(*(pod(i) for i in range(3))), 50, nodes=nodes))
    assert roster is not None and len(roster.members) == size


# Failures.


def fault_of(code: int, rules: list[FailureRule] | None = None, reason: str = "PodFailed") -> Any:
    fault = Fault(pod="p", reason=reason, message="", generation_reason=GenerationReason.POD_FAILED, exit_code=code)
    return fault.verdict(rules or [])


@pytest.mark.parametrize(
    ("code", "cause", "action"),
    [
        (ExitCode.INTERNAL, "application", "Restart"),
        (ExitCode.CONFIG, "application", "Fail"),
        (ExitCode.DATA, "application", "Fail"),
        (ExitCode.PERMISSION, "infrastructure", "Wait"),
        (ExitCode.STORAGE, "infrastructure", "Restart"),
        (ExitCode.DISK_FULL, "infrastructure", "ReplaceNode"),
        (ExitCode.CHECKPOINT, "infrastructure", "ReplaceNode"),
        (ExitCode.DIVERGED, "application", "Restart"),
        (ExitCode.GRADIENTS, "application", "Restart"),
        (ExitCode.HANG, "hang", "Restart"),
        (ExitCode.CUDA, "infrastructure", "ReplaceNode"),
        (ExitCode.TERMINATED, "preemption", "Restart"),
        (ExitCode.KILLED, "infrastructure", "Restart"),
        (139, "application", "Restart"),
        (3, "application", "Restart"),
    ],
)
def test_every_exit_code_has_a_cause_and_an_action(code: int, cause: str, action: str) -> None:
    assert fault_of(code) == (cause, action)


def test_every_exit_code_of_the_vocabulary_is_in_the_table() -> None:
    from videotrain_operator.planner.faults import EXIT_CODES

    assert set(EXIT_CODES) == set(ExitCode)


def test_a_reason_says_more_than_a_code() -> None:
    assert fault_of(ExitCode.KILLED, reason="OOMKilled").cause == "application"


def test_the_first_matching_rule_of_the_user_decides() -> None:
    rules = [
        FailureRule(exit_codes=[5], action="Ignore"),
        FailureRule(reasons=["OOMKilled"], action="Fail"),
        FailureRule(action="ReplaceNode"),
    ]
    assert fault_of(5, rules).action == "Ignore"
    assert fault_of(137, rules, "OOMKilled").action == "Fail"
    assert fault_of(1, rules).action == "ReplaceNode"


def test_a_dead_pod_explains_what_its_peers_say() -> None:
    dead = pod_fault("demo-w1", pod(1, phase="Failed", finished_at=at(9), exit_code=137, reason="OOMKilled"))
    peer = worker_fault(Report("demo-w0", at(10), failed(1, 5, 1, at(8), "connection reset by peer")), pod(0))
    assert dead is not None and peer is not None
    assert root_of([peer, dead]) is dead


def test_the_earliest_failure_that_blames_nobody_is_the_root() -> None:
    reports = [failed(1, 5, 82, at(7)), failed(1, 5, 80, at(9)), failed(1, 5, 1, at(8))]
    faults = [worker_fault(Report(f"demo-w{i}", at(10), f), pod(i)) for i, f in enumerate(reports)]
    root = root_of([fault for fault in faults if fault is not None])
    assert root is not None and root.exit_code == 1


def test_without_a_root_the_silent_member_is_left_out() -> None:
    facts = failed(1, 5, 82, at(10))
    decided = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 20, 0, 2)), 20)
    assert decided.status.restarts.infrastructure == 1
    assert [node.name for node in decided.status.suspect_nodes] == ["node-1"]


def test_a_silent_member_that_is_seen_to_end_later_is_not_counted_again() -> None:
    facts = failed(1, 5, 82, at(10))
    blamed = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 20, 0, 2)), 20).status.to_wire()
    ended = pod(1, phase="Failed", finished_at=at(21), exit_code=137, reason="NodeLost")
    survivors = [pod(index) for index in (0, 2)]
    settled = decide(blamed, seen(survivors[0], ended, survivors[1], agents=answers(facts, 22, 0, 2)), 22)
    assert settled.status.restarts.infrastructure == 1
    assert "demo-w1" in {deletion.name for deletion in settled.delete}


def test_a_member_that_kept_a_world_from_starting_is_not_counted_again_when_it_ends() -> None:
    facts = progress(1, 0, state="starting")
    late = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 5000, 0, 2)), 5000)
    assert late.status.restarts.hang == 1
    ended = pod(1, phase="Failed", finished_at=at(5001), exit_code=137, reason="NodeLost")
    survivors = [pod(index) for index in (0, 2)]
    settled = decide(late.status.to_wire(), seen(survivors[0], ended, survivors[1]), 5002)
    assert (settled.status.restarts.hang, settled.status.restarts.infrastructure) == (1, 0)


def test_a_gpu_fault_makes_new_pods_avoid_the_node() -> None:
    facts = failed(1, 5, int(ExitCode.CUDA), at(10))
    first = decide(
        running(facts=facts), seen(*trio(), agents=answers(facts, 11, 1) | answers(progress(1, 5), 11, 0, 2)), 11
    )
    assert [node.name for node in first.status.suspect_nodes] == ["node-1"]
    pods = [pod(0), pod(2)]
    second = decide(first.status.to_wire(), seen(*pods), 12)
    created = [item for item in second.apply if item["kind"] == "Pod" and "spec" in item]
    terms = created[0]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    fields = terms["nodeSelectorTerms"][0]["matchFields"]
    assert fields == [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]


def test_a_suspicion_is_forgotten_after_an_hour() -> None:
    facts = progress(1, 5, last_step_at=at(4000))
    status = running(facts=facts) | {
        "suspectNodes": [{"name": "node-9", "reason": "x", "since": "2026-01-01T12:00:00Z"}]
    }
    assert decide(status, seen(*trio(), agents=answers(facts, 3599)), 3599).status.suspect_nodes
    assert not decide(status, seen(*trio(), agents=answers(facts, 3601)), 3601).status.suspect_nodes


def test_an_ignored_fault_is_not_counted() -> None:
    facts = failed(1, 5, 42, at(10))
    policy = {"rules": [{"exitCodes": [42], "action": "Ignore"}]}
    decided = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 11)), 11, failurePolicy=policy)
    assert decided.status.restarts.application == 0
    assert decided.status.generations[-1].end_cause == "application"


def test_a_pod_that_fails_before_it_is_a_member_is_counted_once_and_then_replaced() -> None:
    dead = pod(0, phase="Failed", running=False, finished_at=at(5), exit_code=1)
    first = decide(running() | {"generations": [], "generation": 0}, seen(dead), 6)
    assert first.status.restarts.application == 1 and not first.delete
    second = decide(first.status.to_wire(), seen(dead), 7)
    assert second.status.restarts.application == 1 and [d.name for d in second.delete] == ["demo-w0"]


def test_a_lost_node_is_never_blamed_on_a_step() -> None:
    facts = progress(1, 5)
    pods = [replace(p, node_lost=p.index == 1) for p in trio()]
    decided = decide(running(facts=facts), seen(*pods, agents=answers(facts, 11, 0, 2)), 11)
    assert decided.status.same_step_deaths == 0


@pytest.mark.parametrize("reason", ["NodeLost", "Evicted"])
def test_pods_that_died_without_their_fault_do_not_count_as_no_progress(reason: str) -> None:
    facts = progress(1, 5)
    dead = [pod(i, phase="Failed", running=False, finished_at=at(11), reason=reason, exit_code=137) for i in range(3)]
    status = running(facts=facts) | {"sameStepDeaths": 2, "lastDeathStep": 5}
    decided = decide(status, seen(*dead), 12)
    assert decided.status.phase == "Restarting" and decided.status.same_step_deaths == 2


# Hangs.


def test_the_first_step_must_come_in_time() -> None:
    facts = progress(1, 0, "starting")
    early = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 300)), 300)
    late = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 302)), 302)
    assert early.status.generations[-1].end_cause is None
    assert late.status.generations[-1].end_cause == "hang"
    assert "startSeconds" in late.status.generations[-1].end_message


def test_an_agent_that_cannot_obey_says_why_in_the_message() -> None:
    words = {f"demo-w{i}": agent(i, None, at(302), error="config hash differs") for i in range(3)}
    decided = decide(running(), seen(*trio(), agents=words), 302)
    assert "config hash differs" in decided.status.generations[-1].end_message


def test_the_agents_clock_measures_a_hang() -> None:
    facts = progress(1, 35)  # the last step ended at 40
    ahead = answers(facts, 60, 0, 1, 2)
    decided = decide(running(facts=facts), seen(*trio(), agents=ahead), 5000)
    assert decided.status.generations[-1].end_cause is None


def test_a_stage_end_that_gets_on_is_no_hang_and_one_that_stands_still_is() -> None:
    exporting = progress(1, 35, last_sign_at=at(700))  # the last step ended at 40
    for now, cause in ((750, None), (770, "hang")):
        status = running(facts=exporting) | {"unconfirmed": {"Hang": "2026-01-01T12:00:02Z"}}
        decided = decide(status, seen(*trio(), agents=answers(exporting, now, 0, 1, 2)), now)
        assert decided.status.generations[-1].end_cause == cause


def test_a_world_that_only_stores_its_result_makes_no_first_step_and_is_not_late() -> None:
    storing = progress(1, 0, started_at=at(5), resumed_step=100, last_sign_at=at(1000))
    for now, cause in ((1050, None), (1070, "hang")):
        status = running(facts=storing) | {"unconfirmed": {"Hang": "2026-01-01T12:00:02Z"}}
        decided = decide(status, seen(*trio(), agents=answers(storing, now, 0, 1, 2)), now)
        assert decided.status.generations[-1].end_cause == cause


def test_silence_makes_progress_unknown_and_nothing_else() -> None:
    decided = decide(running(facts=progress(1, 35)), seen(*trio()), 5000)
    assert condition(decided, "ProgressObserved").status == "Unknown"
    assert decided.status.generations[-1].end_cause is None and not decided.delete


# Spec edits and acceptance.


def frozen(**spec: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(config_data(run_of(manifest(**spec)))[FROZEN_SPEC_KEY])
    return data


def test_an_edit_of_a_frozen_field_is_told_and_ignored() -> None:
    observed = seen(*trio(), agents=answers(progress(1, 5), 11), frozen_spec=frozen())
    status = running(facts=progress(1, 5)) | {"observedGeneration": 1}
    decided = decide(status, observed, 11, seed=7)
    assert condition(decided, "Accepted").reason == "EditIgnored"
    assert "spec.seed" in condition(decided, "Accepted").message
    assert [event.reason for event in decided.events] == ["EditIgnored"]
    stored = json.loads(decided.apply[-1]["data"]["ledger.json"])
    assert decide(decided.status.to_wire(), replace(observed, ledger=stored), 11, seed=7).events == ()


def test_a_lost_config_map_of_an_edited_run_stops_new_pods_only() -> None:
    body = manifest(seed=7)
    body["status"] = running(facts=progress(1, 5))
    decided = plan(run_of(body), seen(*trio()[:2], agents=answers(progress(1, 5), 11, 0, 1)), at(11))
    assert condition(decided, "Accepted").reason == "FrozenConfigLost"
    assert not [item for item in decided.apply if "spec" in item and item["kind"] == "Pod"]


def test_a_manifest_that_does_not_parse_gets_a_condition() -> None:
    body = manifest() | {"status": running()}
    first = plan_refusal(body, seen(), ManifestError([]), at(0))
    assert condition(first, "Accepted").status == "False"
    assert first.status.generation == 1 and not first.apply and not first.delete
    again = plan_refusal(body | {"status": first.status.to_wire()}, seen(), ManifestError([]), at(9))
    assert again.status == first.status and again.events == ()


def test_an_edit_that_no_layout_can_run_holds_the_world() -> None:
    status = running(facts=progress(1, 5)) | {"observedGeneration": 0}
    decided = decide(status, seen(*trio(), agents=answers(progress(1, 5), 11)), 11, nodes={"min": 3, "max": 2})
    assert condition(decided, "Accepted").reason == "Invalid"
    assert decided.status.generations[-1].end_cause is None and not decided.delete


# Progress of several members.


def test_facts_of_members_complete_each_other_and_never_go_back() -> None:
    leader = progress(1, 7, saved=[saved(5, 10)])
    other = progress(1, 6, world_size=None)
    known = merge(None, [Report("a", at(13), leader), Report("b", at(13), other)], 2)
    assert known is not None and known.step == 7 and known.saved[0].step == 5
    assert merge(known, [Report("b", at(13), other)], 2) == known.model_copy(update={"saved": known.saved})


def test_a_world_has_succeeded_when_every_member_has() -> None:
    done, busy = progress(1, 9, "succeeded"), progress(1, 9)
    one = merge(None, [Report("a", at(20), done)], 2)
    mixed = merge(None, [Report("a", at(20), done), Report("b", at(20), busy)], 2)
    both = merge(None, [Report("a", at(20), done), Report("b", at(20), done)], 2)
    assert one is not None and mixed is not None and both is not None
    assert (one.state, mixed.state, both.state) == ("running", "running", "succeeded")


# Requests to look again, and templates.


def test_it_looks_often_enough_to_see_a_hang() -> None:
    for hang, look in ((5, 1.0), (30, 3.0), (600, LONGEST_LOOK_SECONDS)):
        policy = {"hangSeconds": hang, "startSeconds": 300, "graceSeconds": 20}
        facts = progress(1, 5)
        decided = decide(running(facts=facts), seen(*trio(), agents=answers(facts, 11)), 11, failurePolicy=policy)
        assert decided.requeue_seconds == look


def test_named_lists_of_a_template_merge_by_name_and_null_removes() -> None:
    base = {"containers": [{"name": "worker", "image": "a", "env": [{"name": "A", "value": "1"}]}], "hostname": "x"}
    patch = {
        "containers": [{"name": "worker", "env": [{"name": "B", "value": "2"}]}, {"name": "sidecar"}],
        "hostname": None,
    }
    assert strategic_merge(base, patch) == {
        "containers": [
            {"name": "worker", "image": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"name": "sidecar"},
        ]
    }
    assert base["hostname"] == "x"


def test_a_budget_need_not_last_for_more_steps_than_the_clock_allows_between_two_checkpoints() -> None:
    facts = progress(1, 35)  # a second a step, six GPUs at 0.001 a second, and 65 steps are left
    found = seen(*trio(), agents=answers(facts, 41, 0, 1, 2))
    for policy, within in (({"everySteps": 1000}, "False"), ({"everySteps": 1000, "everySeconds": 10}, "True")):
        spec = {"budget": {"maxCost": "0.60"}, "checkpoint": policy}
        status = running(facts=facts) | {"unconfirmed": {"BudgetExceeded": "2026-01-01T12:00:02Z"}}
        assert condition(decide(status, found, 41, **spec), "BudgetOK").status == within


def test_a_fault_says_that_copies_in_memory_may_be_ahead_of_the_checkpoint() -> None:
    facts = failed(1, 5, 82, at(10), saved=[saved(3, 8)])
    found = seen(*trio(), agents=answers(facts, 20, 0, 2))
    policy = {"everySteps": 3, "peerCopies": {"everySteps": 1}}
    for checkpoint, where in (
        ({"everySteps": 3}, "from the checkpoint"),
        (policy, "from copies in memory, or else from"),
    ):
        told = [event.message for event in decide(running(facts=facts), found, 20, checkpoint=checkpoint).events]
        assert any(f"the next one goes on {where} " in message for message in told), told
