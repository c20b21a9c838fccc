"""What the scale benchmark reads out of pod events."""

from __future__ import annotations

import pytest
from scale.faults import Recovery
from scale.tracker import Tracker

from videotrain_api.vocabulary import LABEL_INDEX, LABEL_RUN
from videotrain_operator.cluster.interface import WatchEvent


def event(index, *, uid=None, phase="Pending", type_="MODIFIED", run="a", deleting=False, node="n"):
    head = {
        "name": f"{run}-w{index}",
        "uid": uid or f"uid-{index}",
        "labels": {LABEL_RUN: run, LABEL_INDEX: str(index)},
    }
    if deleting:
        head["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    return WatchEvent(
        type_, {"metadata": head, "spec": {"nodeName": node}, "status": {"phase": phase, "podIP": "10.64.0.9"}}
    )


def told(tracker, at, order=(1, False), uids=("uid-0", "uid-1", "uid-2")):
    for uid in uids:
        tracker.told(uid, order, at)


def started():
    """A run of three whose pods exist at 1, run at 2 and have a roster at 3."""
    tracker = Tracker(LABEL_RUN)
    run = tracker.expect("a", 3, now=0.0)
    for at, phase in ((1.0, "Pending"), (2.0, "Running")):
        for index in range(3):
            tracker.note(event(index, phase=phase), at)
    told(tracker, 3.0)
    return tracker, run


def test_a_run_reaches_each_mark_with_its_last_pod():
    tracker = Tracker(LABEL_RUN)
    run = tracker.expect("a", 2, now=0.0)
    tracker.note(event(0, phase="Running"), 1.0)
    assert run.exist_at is None
    tracker.note(event(1), 2.0)
    assert (run.exist_at, run.running_at) == (2.0, None)
    tracker.note(event(1, phase="Running"), 3.0)
    assert (run.running_at, run.roster_at) == (3.0, None)
    told(tracker, 4.0)
    assert run.roster_at == 4.0
    assert tracker.reached == {"exist_at": 1, "running_at": 1, "roster_at": 1}
    assert list(tracker.times("roster_at")) == [4.0]


def test_pods_of_others_and_ended_pods_do_not_count():
    tracker = Tracker(LABEL_RUN)
    run = tracker.expect("a", 2, now=0.0)
    tracker.note(event(0, run="b"), 1.0)
    tracker.note(event(0), 1.0)
    tracker.note(event(1, phase="Failed"), 1.0)
    assert run.exist_at is None
    assert tracker.last("exist_at") is None


def test_a_second_live_pod_of_an_index_is_a_twin_and_a_replacement_is_not():
    tracker, run = started()
    tracker.note(event(1, phase="Failed"), 4.0)
    tracker.note(event(1, uid="new"), 5.0)
    assert run.twins == 0
    tracker.note(event(2, uid="twin"), 6.0)
    assert run.twins == 1


def test_pods_are_counted_until_they_are_gone():
    tracker, _ = started()
    with pytest.raises(AssertionError, match="3 pods"):
        tracker.forget()
    for index in range(3):
        tracker.note(event(index, type_="DELETED"), 4.0)
    tracker.forget()
    assert tracker.runs == {}


def test_a_recovery_is_complete_when_survivors_have_a_roster_and_the_lost_pod_is_replaced():
    tracker, run = started()
    victim, *survivors = run.live()
    recovery = Recovery(began=10.0, survivors=survivors, order=(1, False))
    tracker.note(event(0, phase="Failed"), 10.5)
    assert recovery.outcome(run)["replacedSeconds"] is None
    assert recovery.roster_seconds() is None
    told(tracker, 12.0, (1, True))
    assert recovery.roster_seconds() == 2.0
    tracker.note(event(0, type_="DELETED", phase="Failed"), 12.5)
    tracker.note(event(0, uid="new"), 13.0)
    assert recovery.outcome(run)["replacedSeconds"] is None, "it does not run yet"
    tracker.note(event(0, uid="new", phase="Running"), 14.0)
    assert recovery.outcome(run) == {
        "rosterSeconds": 2.0,
        "replacedSeconds": 3.0,
        "replacedRunningSeconds": 4.0,
        "newPods": 1,
        "survivors": 2,
        "survivorsKept": 2,
    }
    assert victim.phase == "Failed"


def test_a_survivor_that_was_replaced_is_not_kept():
    tracker, run = started()
    recovery = Recovery(began=10.0, survivors=run.live()[1:], order=(1, False))
    tracker.note(event(1, type_="DELETED", phase="Running"), 10.5)
    tracker.note(event(1, uid="new", phase="Running"), 11.0)
    assert recovery.outcome(run)["survivorsKept"] == 1
    assert recovery.outcome(run)["newPods"] == 1


async def test_waiting_ends_with_the_event_that_makes_it_true():
    tracker, run = started()
    assert await tracker.until(lambda: run.whole(), 60, "whole") > 0
    with pytest.raises(TimeoutError, match=r"after 0 s: never"):
        await tracker.until(lambda: False, 0.01, "never")
