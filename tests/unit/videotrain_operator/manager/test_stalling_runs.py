"""Runs whose agents stall beside an honest one: the controller over many simulated clusters."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.planner_builders import manifest
from support.planner_lives import cluster_of, running
from support.processes import SECONDS

from videotrain_api.records import AgentProgress
from videotrain_api.vocabulary import KIND
from videotrain_operator.cluster import agents as agents_module
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.cache import Store
from videotrain_operator.kube.cached_cluster import CACHED
from videotrain_operator.manager.controller import Controller
from videotrain_operator.manager.settings import Settings
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.telemetry import OperatorMetrics

Json = dict[str, Any]
STALLING = 200
HONEST = "honest"


class ManyClusters:
    """A namespace for each simulated cluster; the agents of all but one hold every question."""

    def __init__(self, clusters: dict[str, SimulatedCluster]) -> None:
        self.clusters = clusters
        self.stores = {kind: Store() for kind in CACHED}
        for cluster in clusters.values():
            self.stores[KIND].put(cluster.run)
        self.honest = clusters[HONEST]
        self.stalled = 0
        self.untrusted = ""

    def now(self) -> Any:
        """The clock, which stands still."""
        return self.honest.now

    def __getattr__(self, name: str) -> Any:
        """Operations of `Cluster`, each of which names a namespace, with a kind before it or in a manifest."""
        if not hasattr(self.honest, name):
            raise AttributeError(name)

        async def operate(*arguments: Any, **more: Any) -> Any:
            first = arguments[0]
            namespace = arguments[1] if isinstance(first, str) else first["metadata"]["namespace"]
            cluster = self.clusters.get(namespace, self.honest)
            return await getattr(cluster, name)(*arguments, **more)

        return operate

    def signing_key(self, run_uid: str) -> bytes:
        return self.honest.signing_key(run_uid)

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        if key == self.honest.signing_key(self.honest.run["metadata"]["uid"]):
            return await self.honest.progress(address, key)
        self.stalled += 1
        await asyncio.Event().wait()
        raise AssertionError

    def forget(self, address: str) -> None:
        """Nothing is known of addresses."""

    async def changed(self, address: str, known: str, key: bytes) -> str | None:
        await asyncio.Event().wait()
        raise AssertionError


def elsewhere(cluster: SimulatedCluster, namespace: str) -> SimulatedCluster:
    """A copy of it in another namespace."""
    copy: SimulatedCluster = pickle.loads(pickle.dumps(cluster))
    copy.namespace = namespace
    for body in copy.objects.values():
        body["metadata"]["namespace"] = namespace
    return copy


@asynccontextmanager
async def leading(cluster: ManyClusters) -> AsyncIterator[Controller]:
    controller = Controller(
        cluster,  # type: ignore[arg-type]
        cluster.stores,
        cluster,  # type: ignore[arg-type]
        OperatorMetrics(),
        Settings(),
        lambda: 0.0,
        cluster,  # type: ignore[arg-type]
    )
    task = asyncio.create_task(controller.lead())
    try:
        yield controller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_runs_whose_agents_stall_keep_no_other_run_from_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if they were asked for ever: what another run's user wants is done meanwhile."""
    monkeypatch.setattr(agents_module, "PASS_SECONDS", 100 * SECONDS)
    one = {"min": 1, "max": 1}
    hostile, honest = cluster_of(machines=1, nodes=one), cluster_of(machines=1, nodes=one)
    honest.run["metadata"]["uid"] = manifest()["metadata"]["uid"].replace("1", "a")
    await running(hostile)
    await running(honest)
    names = [f"hostile{number}" for number in range(STALLING)]
    cluster = ManyClusters({name: elsewhere(hostile, name) for name in names} | {HONEST: elsewhere(honest, HONEST)})
    async with asyncio.timeout(SECONDS), leading(cluster) as controller:
        while cluster.stalled < STALLING:
            await asyncio.sleep(0.01)
        cluster.honest.edit(suspend=True)
        controller.notice(WatchEvent("MODIFIED", cluster.honest.run))
        while cluster.honest.run["status"]["phase"] != "Suspending":
            await asyncio.sleep(0.01)
        assert cluster.stalled == STALLING, "each is still in its first question"
