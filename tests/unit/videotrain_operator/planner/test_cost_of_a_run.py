"""What a run costs the API server: requests until its world can begin and over its life, and the size of a pod.

A later commit must not spoil these counts unseen; benchmarks/operator_scale.py measures the seconds.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from support.planner_lives import KEY, cluster_of

from videotrain_api.schema import Json
from videotrain_operator.cluster.status_writes import Memory
from videotrain_operator.reconcile import Outcome, reconcile

NODES = 8
FIXED_WRITES = 6
"""Secret, frozen configuration, roster twice, ledger twice."""
POD_BYTES = 3400
"""Of a pod as it is sent; the API server stores two and a half times that."""


class Counting:
    """A simulated cluster with an operator that remembers, and a count of its writes."""

    def __init__(self, monkeypatch: Any) -> None:
        self.cluster = cluster_of(
            NODES, steps=12, nodes={"min": NODES, "max": NODES}, pool={"gpusPerNode": 1, "pricePerGpuHour": "2.00"}
        )
        self.memory = Memory(lambda: self.cluster.now.timestamp())
        self.writes: Counter[str] = Counter()
        self.passes = 0
        self.rosters_out_after: Counter[str] | None = None
        for name in ("apply", "replace_status", "emit_event", "delete"):
            monkeypatch.setattr(self.cluster, name, self._counted(name, getattr(self.cluster, name)))

    def _counted(self, name: str, write: Any) -> Any:
        async def count(*values: Any, **named: Any) -> Any:
            kind = values[0]["kind"] if name == "apply" else values[0] if name == "delete" else ""
            self.writes[f"{name} {kind}".strip()] += 1
            if kind == "Pod" and name == "apply":
                assert len(json.dumps(values[0], separators=(",", ":"))) <= POD_BYTES
            return await write(*values, **named)

        return count

    async def look(self) -> Outcome:
        self.passes += 1
        return await reconcile(
            self.cluster,
            KEY,
            lambda: self.cluster.now,
            self.cluster,
            memory=self.memory,
            on_roster=lambda _, plan: self._note_roster(plan.roster),
        )

    def _note_roster(self, roster: Any) -> None:
        if roster is not None and roster.generation == 1 and self.rosters_out_after is None:
            self.rosters_out_after = self.writes.copy()

    async def until_its_roster(self) -> Counter[str]:
        """What was written until then."""
        while self.rosters_out_after is None:
            await self.second()
            assert self.passes < 10
        return self.rosters_out_after

    async def second(self) -> Json:
        outcome = await self.look()
        for _ in range(4):
            if outcome.requeue_seconds != 0:
                break
            outcome = await self.look()
        self.cluster.tick()
        return outcome.status


async def test_until_its_world_can_begin_a_run_costs_few_writes_and_no_status(monkeypatch: Any) -> None:
    run = Counting(monkeypatch)
    begun = await run.until_its_roster()
    assert begun["apply Pod"] == NODES
    assert begun["replace_status"] == 0
    assert begun["emit_event"] == 0
    assert sum(begun.values()) <= NODES + FIXED_WRITES


async def test_agents_of_a_world_that_no_status_tells_of_yet_are_asked(monkeypatch: Any) -> None:
    run = Counting(monkeypatch)
    await run.until_its_roster()
    run.cluster.tick()
    outcome = await run.look()
    assert (outcome.run.get("status") or {}).get("generation", 0) == 0 or run.writes["replace_status"] == 1
    assert outcome.observed.agents


async def test_a_whole_life_costs_at_most_thirty_one_writes_of_the_operator(monkeypatch: Any) -> None:
    """Two for each pod and fifteen. A policy and a bill come on top in a real cluster, and writes of others."""
    run = Counting(monkeypatch)
    status: Json = {}
    for _ in range(80):
        status = await run.second()
        if status["phase"] == "Succeeded" and not run.cluster.pods():
            break
    assert status["phase"] == "Succeeded"
    assert run.writes["replace_status"] <= 4
    assert sum(run.writes.values()) <= 31, run.writes


async def test_status_of_a_run_whose_pods_do_not_come_is_written_all_the_same(monkeypatch: Any) -> None:
    run = Counting(monkeypatch)
    run.cluster.nodes.clear()
    for _ in range(5):
        await run.second()
    assert run.writes["replace_status"] >= 1
