"""Events are recorded beside the passes that tell of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from support.processes import SECONDS
from support.server_clock import server_clock

from videotrain_operator.cluster.interface import Conflict, NamespaceGoing, NotFound
from videotrain_operator.kube import cached_cluster as module
from videotrain_operator.kube.cached_cluster import KubeCluster
from videotrain_operator.kube.client import ApiError, ApiUnavailable

Json = dict[str, Any]
RUN = {"kind": "VideoTrainingRun", "metadata": {"name": "demo", "namespace": "team", "uid": "r0"}}


class Server:
    """Answers when it is told to, and as it is told."""

    def __init__(self, *troubles: Exception) -> None:
        self.clock = server_clock()
        self.answers = asyncio.Semaphore(0)
        self.troubles = list(troubles)
        """What the first requests are answered with; all others are taken."""
        self.asked: list[str] = []
        """Names of events, one for each request."""
        self.answered: asyncio.Queue[str] = asyncio.Queue()

    def fenced(self, fence: Any) -> Any:
        return SimpleNamespace(clock=self.clock)

    async def create(self, manifest: Json, manager: str, *, patience: float = 0.0) -> Json:
        assert manifest["kind"] == "Event" and patience > 0, "whatever training waits for goes first"
        self.asked.append(manifest["metadata"]["name"])
        await self.answers.acquire()
        trouble = self.troubles.pop(0) if self.troubles else None
        self.answered.put_nowait(type(trouble).__name__ if trouble else manifest["message"])
        if trouble:
            raise trouble
        return manifest


async def told(server: Server, *messages: str, repeated: int = 0) -> list[str]:
    """Tell of events, and let the server answer everything; what it answered.

    Args:
        server: which one.
        messages: of the events.
        repeated: how many requests come beside the first of each event.
    """
    cluster = KubeCluster(server, {}, lambda: None, "host")  # type: ignore[arg-type]
    for message in messages:
        await cluster.emit_event(RUN, "Normal", "Tested", message)
    assert server.answered.empty(), "who tells of an event does not wait for the server"
    expected = len(messages) + repeated
    for _ in range(expected):
        server.answers.release()
    async with asyncio.timeout(SECONDS):
        answers = [await server.answered.get() for _ in range(expected)]
        await asyncio.gather(*cluster._events)
    return answers


async def test_who_tells_of_an_event_does_not_wait_for_the_server() -> None:
    assert await told(Server(), "one", "two", "three") == ["one", "two", "three"]


@pytest.mark.parametrize("trouble", [ApiError(403, "Forbidden", "no"), NamespaceGoing("no"), NotFound("no")])
async def test_one_that_is_refused_is_logged_and_harms_no_other(
    trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert await told(Server(trouble), "one", "two") == [type(trouble).__name__, "two"]
    assert caplog.messages == ["run=team/demo event Tested was not recorded: no"]


async def test_an_outage_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "FIRST_EVENT_PAUSE_SECONDS", 0.01)
    away = ApiUnavailable(0, "ConnectionLost", "away")
    server = Server(away, away)
    assert await told(server, "one", repeated=2) == ["ApiUnavailable", "ApiUnavailable", "one"]
    assert len(set(server.asked)) == 1 and caplog.messages == [], "under one name, so that it is never recorded twice"


async def test_one_whose_answer_was_lost_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_EVENT_PAUSE_SECONDS", 0.01)
    server = Server(ApiUnavailable(0, "ConnectionLost", "away"), Conflict("already exists"))
    assert await told(server, "one", repeated=1) == ["ApiUnavailable", "Conflict"]
    assert caplog.messages == []


async def test_an_outage_that_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RECORD_SECONDS", 0.0)
    away = ApiUnavailable(0, "ConnectionLost", "away")
    assert await told(Server(away), "one") == ["ApiUnavailable"]
    assert caplog.messages == ["run=team/demo event Tested was not recorded: away"]


async def test_where_too_many_wait_one_more_is_only_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    server = Server()
    cluster = KubeCluster(server, {}, lambda: None, "host")  # type: ignore[arg-type]
    for message in ("one", "two", "three"):
        await cluster.emit_event(RUN, "Normal", "Tested", message)
    assert caplog.messages == ["run=team/demo event Tested was not recorded: 2 others wait"]
    server.answers.release()
    server.answers.release()
    async with asyncio.timeout(SECONDS):
        assert [await server.answered.get() for _ in range(2)] == ["one", "two"]


async def test_one_that_another_process_recorded_is_there(caplog: pytest.LogCaptureFixture) -> None:
    server, at = Server(Conflict("already exists")), datetime(2026, 11, 30, 4, tzinfo=UTC)
    cluster = KubeCluster(server, {}, lambda: None, "host")  # type: ignore[arg-type]
    await cluster.emit_event(RUN, "Normal", "Tested", "one", name="same", at=at)
    server.answers.release()
    async with asyncio.timeout(SECONDS):
        assert await server.answered.get() == "Conflict"
        await asyncio.gather(*cluster._events)
    assert (server.asked, caplog.messages) == (["demo.same"], [])
