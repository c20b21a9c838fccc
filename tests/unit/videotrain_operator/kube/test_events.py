"""Events are recorded beside the passes that tell of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.processes import SECONDS
from support.server_clock import server_clock

from videotrain_operator.kube import cached_cluster as module
from videotrain_operator.kube.cached_cluster import KubeCluster
from videotrain_operator.kube.client import ApiError

Json = dict[str, Any]
RUN = {"kind": "VideoTrainingRun", "metadata": {"name": "demo", "namespace": "team", "uid": "r0"}}


class Server:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.clock = server_clock()
        self.answers = asyncio.Semaphore(0)
        self.refuses = ""
        self.recorded: asyncio.Queue[str] = asyncio.Queue()

    def fenced(self, fence: Any) -> Server:
        return self

    async def create(self, manifest: Json, manager: str, *, patience: float = 0.0) -> Json:
        assert manifest["kind"] == "Event" and patience > 0, "whatever training waits for goes first"
        await self.answers.acquire()
        if manifest["reason"] == self.refuses:
            self.recorded.put_nowait("refused")
            raise ApiError(403, "Forbidden", "exceeded quota")
        self.recorded.put_nowait(f"{manifest['involvedObject']['name']}: {manifest['message']}")
        return manifest


async def test_who_tells_of_an_event_does_not_wait_for_the_server() -> None:
    server = Server()
    cluster = KubeCluster(server, {}, lambda: None, "host")  # type: ignore[arg-type]
    for number in range(3):
        await cluster.emit_event(RUN, "Normal", "Tested", f"message {number}")
    assert server.recorded.empty()
    for number in range(3):
        server.answers.release()
        async with asyncio.timeout(SECONDS):
            assert await server.recorded.get() == f"demo: message {number}"


async def test_one_that_is_refused_is_logged_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.refuses = "Refused"
    cluster = KubeCluster(server, {}, lambda: None, "host")  # type: ignore[arg-type]
    for reason in ("Refused", "Tested"):
        await cluster.emit_event(RUN, "Normal", reason, reason)
        server.answers.release()
    async with asyncio.timeout(SECONDS):
        assert [await server.recorded.get() for _ in range(2)] == ["refused", "demo: Tested"]
    assert "run=team/demo event Refused was not recorded: exceeded quota" in caplog.text


async def test_where_too_many_wait_the_next_one_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    server = Server()
    cluster = KubeCluster(server, {}, lambda: None, "host")  # type: ignore[arg-type]
    for number in range(2):
        await cluster.emit_event(RUN, "Normal", "Tested", f"message {number}")
    third = asyncio.create_task(cluster.emit_event(RUN, "Normal", "Tested", "message 2"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not third.done()
    server.answers.release()
    async with asyncio.timeout(SECONDS):
        await third
