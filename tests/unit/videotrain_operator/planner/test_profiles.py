"""Traces asked for by an annotation: into the roster, out of the answers, and never twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.planner_builders import agent, at, manifest, pod, progress, roster_in, run_of, seen

from videotrain_api.records import ProfileRequest, Roster, RosterMember, StoredProfile
from videotrain_api.vocabulary import ANNOTATION_PROFILE, PORT_RENDEZVOUS
from videotrain_operator.planner.decision import Event, Plan
from videotrain_operator.planner.plan import plan
from videotrain_operator.planner.profiles import asked_members

CONFIG = "demo-config-frozen"
STATUS = {
    "configMap": CONFIG,
    "generation": 1,
    "observedGeneration": 1,
    "stages": [{"name": "train", "task": "train", "state": "Running", "configHash": "0" * 16, "totalSteps": 100}],
    "generations": [
        {
            "number": 1,
            "stage": "train",
            "reason": "Started",
            "members": ["demo-w0", "demo-w1", "demo-w2"],
            "worldSize": 6,
            "gpus": 6,
            "createdAt": "2026-01-01T12:00:01Z",
        }
    ],
}


def roster(profile: ProfileRequest | None = None) -> Roster:
    return Roster(
        run_uid="uid-run",
        generation=1,
        action="run",
        stage="train",
        config_hash="0" * 16,
        reason="Started",
        members=[RosterMember(pod=f"demo-w{i}", address=f"10.0.0.{i + 1}", uid=f"uid-{i}") for i in range(3)],
        port=PORT_RENDEZVOUS + 1,
        processes_per_node=2,
        created_at=at(1),
        profile=profile,
    )


def decide(
    status: dict[str, Any], text: str | None, published: Roster, *traces: StoredProfile, seconds: float = 20
) -> Plan:
    body = manifest() | {"status": status}
    if text is not None:
        body["metadata"]["annotations"] = {ANNOTATION_PROFILE: text}
    facts = progress(1, 5, world_size=6, profiles=list(traces))
    observed = seen(
        *(pod(i) for i in range(3)),
        agents={f"demo-w{i}": agent(i, facts, at(seconds)) for i in range(3)},
        roster=published.model_copy(update={"run_uid": run_of(body).metadata.uid}),
        config_maps=frozenset({CONFIG}),
    )
    return plan(run_of(body), observed, at(seconds))


def trace(rank: int, error: str = "", number: int = 1) -> StoredProfile:
    uri = f"s3://videotrain/demo/demo/train/profiles/0001/rank-{rank}.json.gz"
    return StoredProfile(number=number, rank=rank, first_step=4, last_step=6, uri=uri, error=error)


def after(decided: Plan) -> dict[str, Any]:
    return decided.status.to_wire()


def told(decided: Plan) -> list[Event]:
    return [event for event in decided.events if event.reason.startswith("Profile")]


def test_a_request_is_published_at_once_in_the_roster_of_the_running_world() -> None:
    decided = decide(STATUS, "steps=3 ranks=0,5", roster())
    published = roster_in(decided)
    assert published is not None
    assert published.profile == ProfileRequest(number=1, steps=3, ranks=[0, 5])
    assert (published.generation, published.members) == (1, roster().members)
    assert decided.roster == published, "and it is sent, for a kubelet may take a minute"
    assert decided.status.profile is not None
    assert (decided.status.profile.state, decided.status.generation) == ("Requested", 1)
    assert decided.status.generations[-1].end_cause is None


def test_the_same_request_is_made_once_and_ends_when_all_ranks_have_stored() -> None:
    asked = decide(STATUS, "ranks=0,5", roster())
    known = roster(ProfileRequest(number=1, steps=3, ranks=[0, 5]))
    waiting = decide(after(asked), "ranks=0,5", known, trace(0))
    assert roster_in(waiting) is None
    assert waiting.status.profile is not None
    assert (waiting.status.profile.state, [t.rank for t in waiting.status.profile.traces]) == ("Requested", [0])
    assert waiting.requeue_seconds is not None and waiting.requeue_seconds <= 5
    done = decide(after(waiting), "ranks=0,5", known, trace(0), trace(5))
    assert done.status.profile is not None
    assert done.status.profile.state == "Stored"
    assert [(event.reason, event.type) for event in told(done)] == [("ProfileStored", "Normal")]
    assert "2 stored in s3://videotrain/demo/demo/train/profiles/0001" in told(done)[0].message
    again = decide(after(done), "ranks=0,5", known, trace(0), trace(5))
    assert (roster_in(again), told(again)) == (None, [])
    assert again.status.profile == done.status.profile


def test_another_text_or_the_same_after_its_removal_is_another_request() -> None:
    done = decide(
        after(decide(STATUS, "ranks=0", roster())),
        "ranks=0",
        roster(ProfileRequest(number=1, steps=3, ranks=[0])),
        trace(0),
    )
    assert done.status.profile is not None and done.status.profile.state == "Stored"
    known = roster(ProfileRequest(number=1, steps=3, ranks=[]))
    other = decide(after(done), "ranks=0 id=b", known, trace(0))
    assert other.status.profile is not None
    assert (other.status.profile.number, other.status.profile.traces) == (2, [])
    removed = decide(after(done), None, known, trace(0))
    assert removed.status.profile is not None and removed.status.profile.state == "Stored"
    anew = decide(after(removed), "ranks=0", known, trace(0))
    assert anew.status.profile is not None and anew.status.profile.number == 2


def test_a_status_that_forgot_goes_on_above_what_agents_may_know() -> None:
    decided = decide(STATUS, "ranks=0", roster(ProfileRequest(number=7, steps=3, ranks=[0])))
    published = roster_in(decided)
    assert published is not None and published.profile is not None
    assert published.profile.number == 8


@pytest.mark.parametrize("text", ["steps=0", "ranks=x", "yes please"])
def test_what_nobody_understands_is_told_once_and_changes_no_roster(text: str) -> None:
    decided = decide(STATUS, text, roster())
    assert roster_in(decided) is None
    assert [event.reason for event in told(decided)] == ["ProfileRefused"]
    assert "allowed" in told(decided)[0].message
    again = decide(after(decided), text, roster())
    assert told(again) == []


def test_an_error_of_a_rank_is_told_and_a_rank_that_the_world_does_not_have_is_not_waited_for() -> None:
    asked = decide(STATUS, "ranks=0,5,99", roster())
    known = roster(ProfileRequest(number=1, steps=3, ranks=[0, 5, 99]))
    decided = decide(after(asked), "ranks=0,5,99", known, trace(0), trace(5, "OSError: no space"))
    assert decided.status.profile is not None and decided.status.profile.state == "Failed"
    assert [event.message for event in told(decided)] == ["trace 1: 1 stored. rank 5: OSError: no space"]


def test_the_next_world_is_not_asked_again_for_what_is_stored() -> None:
    asked = decide(STATUS, "ranks=0", roster())
    done = decide(after(asked), "ranks=0", roster(ProfileRequest(number=1, steps=3, ranks=[0])), trace(0))
    status = after(done)
    status["generations"][-1] |= {"endCause": "drained", "endReason": "Grow"}
    published = roster_in(decide(status, "ranks=0", roster(ProfileRequest(number=1, steps=3, ranks=[0])), trace(0)))
    assert published is not None and published.generation == 2
    assert published.profile == ProfileRequest(number=1, steps=3, ranks=[])


def test_the_pods_of_the_asked_ranks_are_asked_for_their_progress() -> None:
    members = ["w0", "w1", "w2"]
    assert asked_members(roster(ProfileRequest(number=1, steps=3, ranks=[1, 4, 99])), members) == {"w0", "w2"}
    assert asked_members(roster(), members) == asked_members(None, members) == set()


def test_requests_order_rosters_between_run_and_stop() -> None:
    first, second = (roster(ProfileRequest(number=n, steps=1, ranks=[])) for n in (1, 2))
    stop = roster().model_copy(update={"action": "stop"})
    later = roster().model_copy(update={"generation": 2})
    assert roster().order() < first.order() < second.order() < stop.order() < later.order()
    assert Roster.from_wire(json.loads(json.dumps(first.to_wire()))) == first
