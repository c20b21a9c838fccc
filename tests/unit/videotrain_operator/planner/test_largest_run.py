"""The largest run that the schema allows, with the longest names: 4,096 nodes in the simulated cluster.

Its agents hear of rosters by the operator's push alone, agent by agent; no mounted file comes in time. What is written
in its life stands in docs/reference/limits.md; `VIDEOTRAIN_WRITE_DOCS=1` writes it there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support.planner_builders import manifest, train_stage
from support.planner_lives import condition
from support.run_objects import numbers_of, told_on_page
from support.stored_sizes import go_json

from videotrain_api.records import Roster, RosterNotice
from videotrain_api.relay import FANOUT, branches
from videotrain_api.resource.stored_size import LARGEST_CONFIG_MAP, LARGEST_REQUEST
from videotrain_api.schema import Json
from videotrain_operator.manager.announcement import Announcement
from videotrain_operator.reconcile import Outcome, RunKey, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.world import Pace

NODES = 4096
SPARES = 2
HEAD = ("| what happens | passes | pods created or deleted | other writes | kB |", "|---|---:|---:|---:|---:|")
LONGEST_NOTICE = 2 * 2**20
"""Bytes that an agent takes; see `LONGEST_NOTICE` of the agent's server."""


class LargeCluster(SimulatedCluster):
    """Counts what is written, and shows no roster in a mounted file: agents have what they were told."""

    def __init__(self, run: Json, nodes: int) -> None:
        super().__init__(run, nodes, pace=Pace(every_steps=5))
        self.requests: Counter[str] = Counter()
        self.largest: dict[str, int] = {}
        self.bytes: Counter[str] = Counter()
        self.tree: Counter[str] = Counter()
        self.passes = 0
        self.announcement = Announcement(self)  # type: ignore[arg-type]  # it only speaks with agents

    def _mounted(self) -> Roster | None:
        return None

    def count(self, what: str, body: Json) -> None:
        size = len(go_json(body))
        self.requests[what] += 1
        self.bytes[what] += size
        self.largest[what] = max(size, self.largest.get(what, 0))

    async def apply(self, manifest: Json, manager: str = "videotrain-operator") -> Json:
        name = manifest["metadata"]["name"].removeprefix(self.name + "-")
        self.count(name if manifest["kind"] == "ConfigMap" and "config" not in name else manifest["kind"], manifest)
        return await super().apply(manifest, manager)

    async def delete(self, kind: str, namespace: str, name: str, **more: Any) -> None:
        self.count(f"delete {kind}", {})
        await super().delete(kind, namespace, name, **more)

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        self.count("run", self.run | {"status": status})
        return await super().replace_status(kind, namespace, name, status, resource_version)

    async def tell(self, address: str, notice: RosterNotice, key: bytes) -> list[str]:
        self.tree["by the operator"] += 1
        return self._take(address, notice)

    def _take(self, address: str, notice: RosterNotice) -> list[str]:
        self.tree["requests"] += 1
        assert len(notice.to) * 17 + self.largest["roster"] < LONGEST_NOTICE
        agent = self.agents[self.objects["Pod", self._names[address]]["metadata"]["uid"]]
        self._obey(agent, notice.roster)
        told = [self._take(head, notice.model_copy(update={"to": rest})) for head, rest in branches(notice.to)]
        return [address, *(one for some in told for one in some)]

    def row(self, what: str) -> str:
        """A row of the table of what was written since the last, which is counted anew."""
        pods = self.requests["Pod"] + self.requests["delete Pod"]
        size = sum(self.bytes.values()) / 1000
        row = f"| {what} | {self.passes} | {pods:,} | {self.requests.total() - pods} | {size:,.0f} |"
        self.passes = 0
        self.requests.clear()
        self.bytes.clear()
        return row

    async def look(self) -> Outcome:
        """Passes until nothing is to be done at once; the roster is sent as the operator does."""
        for _ in range(10):
            self.passes += 1
            key = RunKey(namespace="default", name=self.name)
            outcome = await reconcile(self, key, lambda: self.now, self, tuple(self.departed.values()))
            self.departed.clear()
            self.announcement.spread(outcome.plan.roster, outcome.observed)
            if self.announcement._task is not None:
                await self.announcement._task
            if outcome.requeue_seconds != 0:
                return outcome
        raise AssertionError("it never rests")

    async def until(self, phase: str, seconds: int = 30) -> Outcome:
        for _ in range(seconds):
            outcome = await self.look()
            if outcome.plan.status.phase == phase:
                return outcome
            self.tick()
            assert len(self.alive_generations[-1]) <= 1
        raise AssertionError(f"never {phase}: {outcome.plan.status.phase} {outcome.plan.status.conditions}")


@pytest.fixture
def cluster() -> LargeCluster:
    train = train_stage(steps=100_000)
    train["train"]["parallel"] = {"microBatchesPerStep": 2 * NODES}
    body = manifest(stages=[train], nodes={"min": NODES, "max": NODES}, elasticity={"waitForMaxSeconds": 60})
    body["metadata"]["name"] = "a" * 40
    return LargeCluster(body, NODES + SPARES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_the_largest_run_starts_loses_a_pod_shrinks_and_ends(cluster: LargeCluster) -> None:
    status = (await cluster.until("Running")).plan.status
    assert status.nodes.current == NODES
    assert cluster.tree == {"by the operator": FANOUT, "requests": NODES}
    assert cluster.requests["roster"] == 2, "an empty one before the pods, and that of the first generation"
    table = [*HEAD, cluster.row("starts")]

    cluster.finish_pod(f"{cluster.name}-w7", 1)
    status = (await cluster.until("Running")).plan.status
    assert (status.nodes.current, status.generation) == (NODES, 2)
    assert cluster.requests["Pod"] == 1
    assert cluster.requests["roster"] == 2, "a stop and the next generation"
    table.append(cluster.row("a pod fails and is replaced"))

    cluster.edit(nodes={"min": 1, "max": NODES // 2})
    await cluster.look()
    status = (await cluster.until("Running")).plan.status
    assert status.nodes.current == NODES // 2
    await cluster.look()
    table.append(cluster.row("half of the nodes are given back"))

    cluster.edit(suspend=True)
    status = (await cluster.until("Suspended")).plan.status
    assert not cluster.pods()
    assert cluster.requests["delete Pod"] == NODES // 2
    assert condition(status, "Reconciled") is None
    table.append(cluster.row("it is suspended"))

    assert cluster.largest["run"] < LARGEST_REQUEST
    assert cluster.largest["roster"] < LARGEST_CONFIG_MAP
    assert cluster.largest["ledger"] < LARGEST_CONFIG_MAP
    for told, here in zip(told_on_page("life", table), numbers_of("\n".join(table)), strict=True):
        assert here <= 1.1 * told + 1, f"the page says {told}, counted {here}"
