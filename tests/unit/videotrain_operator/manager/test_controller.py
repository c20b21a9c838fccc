"""The controller of many runs: what it does when the server and the cache disagree, and when the server refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from support.manifests_strategy import training_run
from support.planner_lives import cluster_of, running
from support.processes import SECONDS
from support.server_clock import server_clock

from videotrain_api.billing.document import read_bill
from videotrain_api.money import parse_micros
from videotrain_api.signing import derive_signing_key
from videotrain_api.vocabulary import ANNOTATION_PROFILE, BILL_KEY, KIND
from videotrain_operator.cluster import status_writes
from videotrain_operator.cluster.interface import NotFound, WatchEvent
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.cached_cluster import CACHED
from videotrain_operator.kube.client import ApiError
from videotrain_operator.manager import bills
from videotrain_operator.manager import controller as module
from videotrain_operator.manager.controller import Controller, first_patience
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

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str, **_: Any) -> None:
        self.events.append((reason, message))


def controller_of(cluster: Any, metrics: OperatorMetrics, **more: Any) -> Controller:
    """Of a cluster whose agents say nothing."""
    return Controller(cluster, cluster.stores, Silent(), metrics, Settings(), lambda: 0.0, server_clock(), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def leading(cluster: Refusing) -> AsyncIterator[Controller]:
    controller = controller_of(cluster, OperatorMetrics())
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


class Holding(Refusing):
    """A server that does not answer, and whose client takes a moment to give up."""

    def __init__(self) -> None:
        super().__init__(Exception())
        self.asked_for = asyncio.Event()
        self.given_up = asyncio.Event()

    async def apply(self, manifest: Json, manager: str = "") -> Json:
        self.asked_for.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.given_up.wait()
        raise AssertionError


async def test_what_is_noticed_while_a_term_ends_is_left_to_the_next() -> None:
    cluster = Holding()
    controller = controller_of(cluster, OperatorMetrics())
    term = asyncio.create_task(controller.lead())
    async with asyncio.timeout(SECONDS):
        await cluster.asked_for.wait()
    other = training_run("b")
    other["metadata"] |= {"namespace": "team", "uid": "u-2", "resourceVersion": "6", "generation": 1}
    cluster.stores[KIND].put(other)
    term.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
        controller.notice(WatchEvent("ADDED", other))
    cluster.given_up.set()
    assert isinstance((await asyncio.gather(term, return_exceptions=True))[0], asyncio.CancelledError)
    controller.notice(WatchEvent("ADDED", other))


def test_of_a_thousand_runs_those_whose_world_is_young_are_looked_at_first() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)

    def run(**world: Any) -> Json:
        fixed = {"stage": "s", "reason": "Started", "members": ["a"], "worldSize": 1, "gpus": 1, "number": 1}
        return {"status": {"generations": [fixed | world]}}

    young = first_patience(run(createdAt="2026-01-01T23:59:50Z"), now)
    old = first_patience(run(createdAt="2026-01-01T00:00:00Z"), now)
    ended = first_patience(run(createdAt="2026-01-01T00:00:00Z", endCause="infrastructure"), now)
    new = first_patience({"status": None}, now)
    assert 0 < new == ended < young < old <= 2 * module.FIRST_PATIENCE_SECONDS
    assert first_patience({"status": "spoiled"}, now) == first_patience(None, now) == new


class Taking(Refusing):
    """The server takes what it is given."""

    async def apply(self, manifest: Json, manager: str = "") -> Json:
        self.asked += 1
        return manifest


async def test_a_former_leader_tells_nothing_of_runs_any_more() -> None:
    """The next leader tells the same series: a sum over both replicas would count all money twice."""
    cluster, metrics = Taking(Exception()), OperatorMetrics()
    controller = controller_of(cluster, metrics)
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


class Passes(OperatorMetrics):
    """Is told of passes."""

    def __init__(self) -> None:
        super().__init__()
        self.done: asyncio.Queue[Json] = asyncio.Queue()

    def note_pass(self, run: Json, status: Json, *rest: Any) -> None:
        self.done.put_nowait(status)


async def test_while_requests_wait_what_people_read_of_a_run_that_begins_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Passes may have their turns at once, since what is slow is the server."""
    monkeypatch.setattr(status_writes, "BEGIN_SECONDS", 0.0)
    cluster, metrics, waiting = Taking(Exception()), Passes(), [True]
    controller = controller_of(cluster, metrics, requests_wait=lambda: waiting[0])
    (run,) = cluster.stores[KIND].all("team")
    task = asyncio.create_task(controller.lead())
    async with asyncio.timeout(SECONDS):
        begun = await metrics.done.get()
        assert begun["conditions"] and cluster.statuses.empty()
        waiting[0] = False
        run["metadata"]["annotations"] = {ANNOTATION_PROFILE: "1"}
        controller.notice(WatchEvent("MODIFIED", run))
        await metrics.done.get()
        assert cluster.statuses.get_nowait()["observedGeneration"] == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("last", ["Pod", KIND])
async def test_a_run_that_goes_while_nobody_leads_has_its_last_bill_from_who_leads_next(
    monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.setattr(bills, "LOOK_SECONDS", 0.0)
    cluster = cluster_of(machines=3, steps=500)
    await running(cluster, 20)
    refusing, written = Refusing(NotFound("x")), asyncio.Queue[Json]()

    class Server:
        """Without any bill."""

        async def get(self, kind: str, namespace: str, name: str) -> Json:
            raise NotFound(name)

        async def list(self, kind: str, namespace: str = "", labels: str = "") -> list[Json]:
            return []

        async def list_page(self, kind: str, namespace: str = "", **query: str) -> Json:
            return {"items": []}

        async def apply(self, manifest: Json, manager: str, *, force: bool = True) -> Json:
            written.put_nowait(read_bill(json.loads(manifest["data"][BILL_KEY])))
            return manifest

    keeper = bills.BillKeeper(Server(), "videotrain-system", lambda: cluster.now)
    controller = controller_of(refusing, OperatorMetrics(), bills=keeper)
    ledger = cluster.objects["ConfigMap", f"{cluster.name}-ledger"]
    refusing.stores["ConfigMap"].put(ledger | {"metadata": ledger["metadata"] | {"uid": "l", "resourceVersion": "7"}})
    monkeypatch.setattr(controller, "_clock", SimpleNamespace(now=lambda: cluster.now))
    cluster.now += timedelta(seconds=90)
    pods = cluster.pods()
    closed = pods[0] | {"metadata": pods[0]["metadata"] | {"uid": "its bill was closed before"}}
    gone = [WatchEvent("DELETED", pod) for pod in (closed, *pods)]
    for event in sorted([*gone, WatchEvent("DELETED", cluster.run)], key=lambda event: event.object["kind"] == last):
        controller.notice(event)
    cluster.now += timedelta(seconds=30)
    task = asyncio.create_task(controller.lead())
    async with asyncio.timeout(SECONDS):
        kept, bill = await written.get(), await written.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (kept.closed, bill.closed) == (False, True)
    price = parse_micros(cluster.run["spec"]["pool"]["pricePerGpuHour"]) * cluster.run["spec"]["pool"]["gpusPerNode"]
    more = bill.total_micros - kept.total_micros - 3 * price * 90 // 3600
    assert kept.total_micros > 0 and 0 <= more <= 3 * price * 1 // 3600, "from the last pass to when its pods went"
    assert bill.estimated, "what ended in them was not seen"


def test_trouble_of_whoever_is_told_of_a_pass_ends_no_loop_and_is_counted() -> None:
    class Broken:
        def passed(self, outcome: Any) -> None:
            raise ValueError("nobody thought of it")

    cluster, metrics = Refusing(NotFound("a")), OperatorMetrics()
    (run,) = cluster.stores[KIND].all()
    plan = SimpleNamespace(events=(), unreadable=())
    outcome = SimpleNamespace(run=run, status={}, seconds=0.1, plan=plan)
    controller_of(cluster, metrics, traces=Broken())._note(Key("team", "a"), outcome)  # type: ignore[arg-type]
    assert b'videotrain_reconcile_errors_total{error="ValueError"} 1.0' in metrics.text()
