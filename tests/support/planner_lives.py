"""Runs in the simulated cluster, second by second."""

from __future__ import annotations

from typing import Any

from support.planner_builders import manifest, train_stage
from support.planner_cluster import SimCluster

from videotrain_api.resource.status import RunStatus
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.reconcile import Outcome, RunKey, reconcile

KEY = RunKey(namespace="default", name="demo")


def cluster_of(machines: int = 3, steps: int = 60, **spec: Any) -> SimCluster:
    base: dict[str, Any] = {
        "stages": [train_stage(steps=steps)],
        "failurePolicy": {"hangSeconds": 8, "startSeconds": 30, "graceSeconds": 3},
    }
    return SimCluster(manifest(**(base | spec)), nodes=machines, every_steps=5)


async def settle(cluster: SimCluster) -> Outcome:
    """Passes until none asks for another at once."""
    for _ in range(12):
        try:
            outcome = await reconcile(
                cluster, KEY, lambda: cluster.now, cluster, nodes_untrusted=cluster.nodes_untrusted
            )
        except Conflict:
            continue
        if outcome.requeue_seconds != 0:
            return outcome
    raise AssertionError("the planner does not come to rest")


async def pass_seconds(cluster: SimCluster, seconds: int) -> RunStatus:
    for _ in range(seconds):
        await settle(cluster)
        cluster.tick()
        assert len(cluster.alive_generations[-1]) <= 1
    return (await settle(cluster)).plan.status


async def running(cluster: SimCluster, seconds: int = 14) -> RunStatus:
    status = await pass_seconds(cluster, seconds)
    assert status.phase == "Running", status.phase
    return status


def told(cluster: SimCluster, reason: str) -> list[str]:
    return [message for name, message in cluster.events if name == reason]


def condition(status: RunStatus, kind: str) -> Any:
    return next((c for c in status.conditions if c.type == kind), None)
