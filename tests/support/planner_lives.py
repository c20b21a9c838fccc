"""Runs in the simulated cluster, second by second."""

from __future__ import annotations

from typing import Any

from support.known_reasons import unknown_events, unknown_in
from support.planner_builders import manifest, train_stage

from videotrain_api.resource.status import RunStatus
from videotrain_operator.reconcile import RunKey
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import settle
from videotrain_operator.simulation.world import Pace

KEY = RunKey(namespace="default", name="demo")


def cluster_of(machines: int = 3, steps: int = 60, **spec: Any) -> SimulatedCluster:
    base: dict[str, Any] = {
        "stages": [train_stage(steps=steps)],
        "failurePolicy": {"hangSeconds": 8, "startSeconds": 30, "graceSeconds": 3},
    }
    return SimulatedCluster(manifest(**(base | spec)), nodes=machines, pace=Pace(every_steps=5))


async def pass_seconds(cluster: SimulatedCluster, seconds: int) -> RunStatus:
    for _ in range(seconds):
        await settle(cluster)
        cluster.tick()
        assert len(cluster.alive_generations[-1]) <= 1
    outcome = await settle(cluster)
    unknown = [*unknown_in(outcome.plan), *unknown_events(cluster.events)]
    assert unknown == [], unknown
    return outcome.plan.status


async def running(cluster: SimulatedCluster, seconds: int = 14) -> RunStatus:
    status = await pass_seconds(cluster, seconds)
    assert status.phase == "Running", status.phase
    return status


def told(cluster: SimulatedCluster, reason: str) -> list[str]:
    return [message for name, message in cluster.events if name == reason]


def condition(status: RunStatus, kind: str) -> Any:
    return next((c for c in status.conditions if c.type == kind), None)
