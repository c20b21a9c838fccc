"""The operator may die between any two writes: the run ends as if it had not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.planner_builders import manifest, train_stage
from support.planner_cluster import OperatorCrashError, SimCluster

from videotrain_api.resource.status import RunStatus
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.reconcile import RunKey, reconcile

KEY = RunKey(namespace="default", name="demo")
Script = dict[int, Callable[[SimCluster], None]]


async def settle(cluster: SimCluster) -> None:
    """Passes until none asks for another at once; a crashed operator is started again."""
    for _ in range(12):
        try:
            outcome = await reconcile(cluster, KEY, lambda: cluster.now, cluster)
        except (OperatorCrashError, Conflict):
            continue
        if outcome.requeue_seconds != 0:
            return
    raise AssertionError("the planner does not come to rest")


@dataclass
class Life:
    """A run that was lived, with a snapshot of every second."""

    status: RunStatus
    writes: int
    snapshots: list[tuple[int, int, bytes]]
    """(second, writes so far, pickled cluster)."""

    def before_write(self, number: int) -> tuple[int, SimCluster]:
        """The last second that began before a write."""
        second, _, data = [s for s in self.snapshots if s[1] < number][-1]
        cluster: SimCluster = pickle.loads(data)
        return second, cluster


async def record(cluster: SimCluster, script: Script) -> Life:
    snapshots: list[tuple[int, int, bytes]] = []
    status = await live(cluster, script, note=lambda s: snapshots.append((s, cluster.writes, pickle.dumps(cluster))))
    return Life(status, cluster.writes, snapshots)


async def live(
    cluster: SimCluster, script: Script, *, first: int = 0, note: Callable[[int], None] = lambda _: None
) -> RunStatus:
    for second in range(first, 400):
        note(second)
        script.get(second, lambda _: None)(cluster)
        await settle(cluster)
        status = RunStatus.from_wire(cluster.run["status"])
        if status.phase in ("Succeeded", "Failed") and not [k for k in cluster.objects if k[0] == "Pod"]:
            await settle(cluster)
            return RunStatus.from_wire(cluster.run["status"])
        cluster.tick()
    raise AssertionError(f"the run does not end: {status.phase} {status.progress}")


def essence(status: RunStatus) -> dict[str, Any]:
    """What must not depend on when the operator died."""
    cost = status.cost
    assert cost is not None
    assert sum(cost.gpu_microseconds_by_bucket.values()) == cost.held_gpu_microseconds
    assert sum(cost.micros_by_bucket.values()) == cost.total_micros
    return {
        "phase": status.phase,
        "stages": [(s.name, s.state, s.step) for s in status.stages],
        "restarts": status.restarts.model_dump(),
        "generations": [(g.number, g.stage, g.reason, g.members, g.end_cause) for g in status.generations],
        "same_step": status.same_step_deaths,
    }


def two_stages() -> SimCluster:
    stages = [train_stage("first", 6), train_stage("second", 5, nodes={"min": 1, "max": 2})]
    return SimCluster(manifest(stages=stages), nodes=3, every_steps=4)


def node_lost() -> SimCluster:
    return SimCluster(manifest(stages=[train_stage(steps=16)]), nodes=3, every_steps=4)


def one_node() -> SimCluster:
    return SimCluster(manifest(stages=[train_stage(steps=16)], nodes={"min": 1, "max": 1}), nodes=1, every_steps=4)


SCENARIOS: dict[str, tuple[Callable[[], SimCluster], Script]] = {
    "two stages": (two_stages, {}),
    "a lost node comes back": (
        node_lost,
        {10: lambda c: c.lose_node("node-1"), 14: lambda c: c.nodes.update({"node-1": True})},
    ),
    "a worker fails": (node_lost, {10: lambda c: c.fail_worker("demo-w2", 1)}),
    "suspend and resume": (node_lost, {10: lambda c: c.edit(suspend=True), 18: lambda c: c.edit(suspend=False)}),
    "a pod vanishes": (node_lost, {10: lambda c: c.force_delete("demo-w0")}),
    "the only pod vanishes": (one_node, {10: lambda c: c.force_delete("demo-w0")}),
    "a pod is deleted": (node_lost, {10: lambda c: c.ask_to_leave("demo-w0")}),
    "a node is drained": (node_lost, {10: lambda c: c.draining.add("node-0")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
async def test_a_crash_at_any_write_changes_nothing(name: str, after: bool) -> None:
    make, script = SCENARIOS[name]
    undisturbed = await record(make(), script)
    want = essence(undisturbed.status)
    assert want["phase"] == "Succeeded"
    for crash_at in range(1, undisturbed.writes + 1):
        second, cluster = undisturbed.before_write(crash_at)
        cluster.crash_at, cluster.crash_after = crash_at, after
        assert essence(await live(cluster, script, first=second)) == want, f"crash at write {crash_at}"


async def test_never_two_generations_train_at_once() -> None:
    for make, script in SCENARIOS.values():
        cluster = make()
        await live(cluster, script)
        assert all(len(alive) <= 1 for alive in cluster.alive_generations)


async def test_a_run_that_is_gone_is_reported_as_gone() -> None:
    cluster = node_lost()
    cluster.objects.clear()
    with pytest.raises(NotFound):
        await reconcile(cluster, KEY, lambda: cluster.now, cluster)
