"""Which changes of pods that come one after another can wait."""

from __future__ import annotations

import pytest

from videotrain_operator.cluster.arrivals import Arrivals


def pod(uid: str, phase: str = "Running", state: str = "running", **head: str):
    statuses = [{"name": "worker", "state": {state: {}}}] if state else []
    return {"metadata": {"uid": uid} | head, "status": {"phase": phase, "containerStatuses": statuses}}


def test_only_the_last_pod_of_the_largest_world_is_news_at_once() -> None:
    arrivals = Arrivals()
    arrivals.expect(3, ["a"])
    assert arrivals.can_wait(pod("b", phase="Pending", state="")), "it was placed"
    assert arrivals.can_wait(pod("b"))
    assert arrivals.can_wait(pod("b")), "one that runs counts once"
    assert not arrivals.can_wait(pod("c"))


@pytest.mark.parametrize(
    "trouble",
    [pod("b", phase="Failed"), pod("b", state="terminated"), pod("b", deletionTimestamp="2026-01-01T00:00:00Z")],
)
def test_what_goes_wrong_does_not_wait(trouble) -> None:
    arrivals = Arrivals()
    arrivals.expect(3, [])
    assert not arrivals.can_wait(trouble)


def test_nothing_waits_before_the_first_pass_or_once_there_was_a_world() -> None:
    arrivals = Arrivals()
    assert not arrivals.can_wait(pod("a"))
    arrivals.expect(0, ["a"])
    assert not arrivals.can_wait(pod("b"))
