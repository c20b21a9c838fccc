"""The operator may die between any two writes: the run ends as if it had not."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support.at_length import AT_LENGTH
from support.planner_builders import manifest, train_stage

from videotrain_api.resource.status import RunStatus
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import Event, replay, settle
from videotrain_operator.simulation.world import Pace

Script = dict[int, Event]


@dataclass
class Life:
    """A run that was lived, with a snapshot of every second."""

    status: RunStatus
    events: list[tuple[str, str]]
    writes: int
    snapshots: list[tuple[int, int, bytes]]
    """(second, writes so far, pickled cluster)."""

    def before_write(self, number: int) -> tuple[int, SimulatedCluster]:
        """The last second that began before a write."""
        second, _, data = [s for s in self.snapshots if s[1] < number][-1]
        cluster: SimulatedCluster = pickle.loads(data)
        return second, cluster


async def record(cluster: SimulatedCluster, script: Script) -> Life:
    snapshots: list[tuple[int, int, bytes]] = []
    status = await live(cluster, script, note=lambda s: snapshots.append((s, cluster.writes, pickle.dumps(cluster))))
    return Life(status, cluster.events, cluster.writes, snapshots)


async def live(
    cluster: SimulatedCluster, script: Script, *, first: int = 0, note: Callable[[int], None] | None = None
) -> RunStatus:
    await replay(cluster, script, seconds=400, first=first, before_second=note)
    await settle(cluster)
    return RunStatus.from_wire(cluster.run["status"])


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
        "configurations": [s.config_hash for s in status.stages],
        "generations": [(g.number, g.stage, g.reason, g.members, g.end_cause) for g in status.generations],
        "same_step": status.same_step_deaths,
    }


def reasons(events: list[tuple[str, str]]) -> Counter[str]:
    return Counter(reason for reason, _ in events)


def two_stages() -> SimulatedCluster:
    stages = [train_stage("first", 6), train_stage("second", 5, nodes={"min": 1, "max": 2})]
    return SimulatedCluster(manifest(stages=stages), nodes=3, pace=Pace(every_steps=4))


def node_lost() -> SimulatedCluster:
    return SimulatedCluster(manifest(stages=[train_stage(steps=16)]), nodes=3, pace=Pace(every_steps=4))


def one_node() -> SimulatedCluster:
    return SimulatedCluster(
        manifest(stages=[train_stage(steps=16)], nodes={"min": 1, "max": 1}), nodes=1, pace=Pace(every_steps=4)
    )


SCENARIOS: dict[str, tuple[Callable[[], SimulatedCluster], Script]] = {
    "two stages": (two_stages, {}),
    "a lost node comes back": (
        node_lost,
        {10: lambda c: c.lose_node("node-1"), 14: lambda c: c.restore_node("node-1")},
    ),
    "a worker fails": (node_lost, {10: lambda c: c.fail_worker("demo-w2", 1)}),
    "suspend and resume": (node_lost, {10: lambda c: c.edit(suspend=True), 18: lambda c: c.edit(suspend=False)}),
    "suspend, edit and resume": (
        node_lost,
        {
            10: lambda c: c.edit(suspend=True),
            18: lambda c: c.edit(suspend=False, stages=[train_stage(steps=19)]),
        },
    ),
    "a running stage is edited": (node_lost, {9: lambda c: c.edit(stages=[train_stage(steps=19)])}),
    "edited, and a worker fails": (
        node_lost,
        {9: lambda c: c.edit(stages=[train_stage(steps=19)]), 11: lambda c: c.fail_worker("demo-w2", 1)},
    ),
    "a pod vanishes": (node_lost, {10: lambda c: c.force_delete("demo-w0")}),
    "the only pod vanishes": (one_node, {10: lambda c: c.force_delete("demo-w0")}),
    "a pod is deleted": (node_lost, {10: lambda c: c.delete_pod("demo-w0")}),
    "a node is drained": (node_lost, {10: lambda c: c.reclaim("node-0")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
async def test_a_crash_at_any_write_changes_nothing(name: str, after: bool) -> None:
    make, script = SCENARIOS[name]
    undisturbed = await record(make(), script)
    want = essence(undisturbed.status)
    assert want["phase"] == "Succeeded"
    # A crash before a write finds what one after the write before it leaves, so every second write shows all of it.
    for crash_at in range(1, undisturbed.writes + 1, 1 if AT_LENGTH else 2):
        second, cluster = undisturbed.before_write(crash_at)
        cluster.crash_at, cluster.crash_after = crash_at, after
        assert essence(await live(cluster, script, first=second)) == want, f"crash at write {crash_at}"
        assert "StatusLost" not in reasons(cluster.events), f"after a crash at write {crash_at}"
        assert reasons(undisturbed.events) <= reasons(cluster.events), f"untold after a crash at write {crash_at}"


async def test_never_two_generations_train_at_once() -> None:
    for make, script in SCENARIOS.values():
        cluster = make()
        await live(cluster, script)
        assert all(len(alive) <= 1 for alive in cluster.alive_generations)


async def test_a_run_that_is_gone_is_reported_as_gone() -> None:
    cluster = node_lost()
    cluster.objects.clear()
    with pytest.raises(NotFound):
        await settle(cluster)
