"""What was told of a run is kept in its status until it is recorded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from support.planner_builders import at

from videotrain_api.schema import Json
from videotrain_operator.cluster.recent_events import (
    AGAIN_SECONDS,
    KEPT,
    RECORD_SECONDS,
    record_recent,
    told_at,
    with_events,
)
from videotrain_operator.planner.decision import Event

NOW = at(0)


def event(number: int) -> Event:
    return Event(type="Normal", reason="Tested", message=f"number {number}")


def run(status: Any) -> Json:
    return {"metadata": {"uid": "u", "name": "demo", "namespace": "default"}, "status": status}


class Recording:
    """Notes what is recorded of a run."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.messages: list[str] = []

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str, **more: Any) -> None:
        self.names.append(more["name"])
        self.messages.append(message)


async def recorded(status: Any, seconds: float = 1.0) -> Recording:
    cluster = Recording()
    await record_recent(cluster, run(status), NOW + timedelta(seconds=seconds))  # type: ignore[arg-type]
    return cluster


async def test_the_newest_are_kept_and_recorded_under_the_same_names() -> None:
    status: Json = {"phase": "Running"}
    for number in range(KEPT + 2):
        status = with_events(status, [event(number)], NOW)
    one, other = await recorded(status), await recorded(status)
    assert one.messages == [f"number {number}" for number in range(2, KEPT + 2)]
    assert one.names == other.names and len(set(one.names)) == KEPT
    assert status["phase"] == "Running"


async def test_a_pass_that_tells_nothing_changes_no_status() -> None:
    status = with_events({}, [event(1)], NOW)
    assert with_events(status, [], NOW + timedelta(hours=1)) is status


async def test_what_was_given_up_is_neither_recorded_nor_kept() -> None:
    status = with_events({}, [event(1)], NOW)
    assert (await recorded(status, AGAIN_SECONDS + 1)).messages == []
    later = with_events(status, [event(2)], NOW + timedelta(seconds=RECORD_SECONDS + 1))
    assert [item["message"] for item in later["recentEvents"]] == ["number 2"]


async def test_what_a_stranger_wrote_there_ends_no_pass() -> None:
    good = [item.to_wire() for item in told_at([event(1)], NOW)]
    for bad in (7, "x", [7], [{"at": "never"}], {"a": 1}):
        assert (await recorded({"recentEvents": bad})).messages == []
        assert with_events({"recentEvents": bad}, [event(1)], NOW)["recentEvents"] == good
