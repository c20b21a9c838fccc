"""The controller of many runs: what it does when the server and the cache disagree, and when the server refuses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.manifests_strategy import training_run
from support.processes import SECONDS
from support.server_clock import server_clock

from videotrain_api.signing import derive_signing_key
from videotrain_api.vocabulary import KIND
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.cached_cluster import CACHED
from videotrain_operator.kube.client import ApiError
from videotrain_operator.manager import controller as module
from videotrain_operator.manager.controller import Controller
from videotrain_operator.manager.settings import Settings
from videotrain_operator.simulation.cluster import MASTER_KEY
from videotrain_operator.telemetry import OperatorMetrics

Json = dict[str, Any]


class Silent:
    """No agent answers."""

    def signing_key(self, run_uid: str) -> bytes:
        return derive_signing_key(MASTER_KEY, run_uid)

    async def progress(self, address: str, key: bytes) -> None:
        return None


class Refusing:
    """A cluster whose caches hold a run and whose server answers every new object with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.stores = {kind: Store() for kind in CACHED}
        run = training_run("a")
        run["metadata"] |= {"namespace": "team", "uid": "u-1", "resourceVersion": "5", "generation": 1}
        self.stores[KIND].put(run)
        self.asked = 0
        self.statuses: asyncio.Queue[Json] = asyncio.Queue()
        self.events: list[tuple[str, str]] = []

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        body = self.stores[kind].get(Key(namespace, name))
        if body is None:
            raise NotFound(name)
        return body

    async def list(self, kind: str, namespace: str, labels: Any = None) -> list[Json]:
        return self.stores[kind].all(namespace)

    async def apply(self, manifest: Json, manager: str = "") -> Json:
        self.asked += 1
        raise self.error

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        self.statuses.put_nowait(status)
        return await self.get(kind, namespace, name) | {"status": status}

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        self.events.append((reason, message))


@asynccontextmanager
async def leading(cluster: Refusing) -> AsyncIterator[Controller]:
    metrics, agents = OperatorMetrics(), Silent()
    controller = Controller(cluster, cluster.stores, agents, metrics, Settings(), lambda: 0.0, server_clock())  # type: ignore[arg-type]
    task = asyncio.create_task(controller.lead())
    try:
        yield controller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def passes(cluster: Refusing, count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while cluster.asked < count:
            await asyncio.sleep(0.01)


async def test_a_run_that_the_server_does_not_know_is_asked_for_again_and_not_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module, "GONE_SECONDS", 0.01)
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    cluster = Refusing(NotFound('namespaces "team" not found'))
    async with leading(cluster):
        async with asyncio.timeout(SECONDS):
            while cluster.asked < 4:
                await real(0.01)
    assert waits.count(0.01) >= 2, "one pause between two attempts"


async def test_what_is_refused_for_good_is_a_condition_and_an_event_once() -> None:
    cluster = Refusing(ApiError(403, "Forbidden", "pods are forbidden: exceeded quota"))
    async with leading(cluster):
        async with asyncio.timeout(SECONDS):
            status = await cluster.statuses.get()
        await passes(cluster, cluster.asked + 1)
    (condition,) = [c for c in status["conditions"] if c["type"] == "Scheduled"]
    assert (condition["status"], condition["reason"]) == ("False", "Forbidden")
    assert "exceeded quota" in condition["message"]
    assert cluster.events == [("Forbidden", "pods are forbidden: exceeded quota")]


class Taking(Refusing):
    """The server takes what it is given."""

    async def apply(self, manifest: Json, manager: str = "") -> Json:
        self.asked += 1
        return manifest


async def test_a_former_leader_tells_nothing_of_runs_any_more() -> None:
    """The next leader tells the same series: a sum over both replicas would count all money twice."""
    cluster, metrics = Taking(Exception()), OperatorMetrics()
    controller = Controller(
        cluster,  # type: ignore[arg-type]
        cluster.stores,
        Silent(),  # type: ignore[arg-type]
        metrics,
        Settings(),
        lambda: 0.0,
        server_clock(),
    )
    series = re.compile(rb"^videotrain_(run_|cost_|gpu_seconds|restarts|nodes_untrusted)", re.MULTILINE)
    for _ in range(2):
        task = asyncio.create_task(controller.lead())
        async with asyncio.timeout(SECONDS):
            while not series.search(metrics.text()):
                await asyncio.sleep(0.01)
        controller.look_at_nodes()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        controller.look_at_nodes()
        assert series.findall(metrics.text()) == []
