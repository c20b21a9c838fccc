"""A write that waited behind others while the Lease was lost is not sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from videotrain_operator.kube.client import ApiUnavailable, KubeClient
from videotrain_operator.kube.pace import FEWEST


class NotLeading(Exception):
    """What the fence raises."""


class SlowServer(KubeClient):
    """Answers nobody until `open` is set; notes what was sent."""

    sent: list[str]
    open: asyncio.Event
    errors: list[int]

    async def _once(self, method: str, kind: str, path: str, query: Any, body: Any, content: str, verb: str) -> Any:
        self.sent.append(method)
        await self.open.wait()
        if self.errors:
            raise ApiUnavailable(self.errors.pop(), "TooManyRequests", "later")
        return {}


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(SlowServer, "sent", [], raising=False)
    monkeypatch.setattr(SlowServer, "open", asyncio.Event(), raising=False)
    monkeypatch.setattr(SlowServer, "errors", [], raising=False)
    monkeypatch.setattr(KubeClient, "_once", SlowServer._once)
    for name in ("sent", "open", "errors"):
        monkeypatch.setattr(KubeClient, name, getattr(SlowServer, name), raising=False)
    async with ApiClient(Configuration()) as api:
        yield KubeClient(api)


async def test_a_delete_that_waited_behind_others_asks_the_fence_when_it_is_sent(server: KubeClient) -> None:
    leading = True

    def fence() -> None:
        if not leading:
            raise NotLeading

    client = server.fenced(fence)
    reads = [asyncio.create_task(server.get("Pod", "team", "a")) for _ in range(FEWEST)]
    await asyncio.sleep(0)
    write = asyncio.create_task(client.delete("Pod", "team", "a"))
    await asyncio.sleep(0)
    leading = False
    SlowServer.open.set()
    await asyncio.gather(*reads)
    with pytest.raises(NotLeading):
        await write
    assert set(SlowServer.sent) == {"GET"}


async def test_a_write_is_not_repeated_by_who_leads_no_more(server: KubeClient) -> None:
    asked: list[int] = []

    def fence() -> None:
        asked.append(1)
        if len(asked) > 1:
            raise NotLeading

    SlowServer.open.set()
    SlowServer.errors.append(429)
    with pytest.raises(NotLeading):
        await server.fenced(fence).delete("Pod", "team", "a")
    assert SlowServer.sent == ["DELETE"]


async def test_a_write_comes_back_when_the_server_says_and_asks_the_fence_then(
    server: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def busy(*_: Any) -> Any:
        raise ApiUnavailable(429, "TooManyRequests", "later", 3.0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(KubeClient, "_once", busy)
    asked: list[int] = []
    with pytest.raises(ApiUnavailable):
        await server.fenced(lambda: asked.append(1)).delete("Pod", "team", "a")
    assert pauses == [3.0, 3.0, 3.0]
    assert len(asked) == 4
