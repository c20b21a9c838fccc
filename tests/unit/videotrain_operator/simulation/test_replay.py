"""The replay: the same script gives the same history, and what is given decides it."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from support.planner_builders import manifest, train_stage

from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.reconcile import Outcome
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.queue import PodGroupQueue
from videotrain_operator.simulation.replay import Event, replay, settle
from videotrain_operator.simulation.world import Pace

LOST = {10: lambda c: c.lose_node("node-1"), 14: lambda c: c.restore_node("node-1")}


def cluster_of(pace: Pace | None = None, **spec: object) -> SimulatedCluster:
    return SimulatedCluster(manifest(**({"stages": [train_stage(steps=40)]} | spec)), nodes=3, pace=pace)


async def history(
    cluster: SimulatedCluster, script: dict[int, Event], first: int = 0, note: Callable[[int], None] | None = None
) -> list[str]:
    told: list[str] = []

    def tell(_: int, outcome: Outcome) -> None:
        told.append(repr(outcome.plan.status))

    await replay(cluster, script, seconds=300, first=first, before_second=note, after_pass=tell)
    return told


async def test_the_same_script_gives_the_same_history() -> None:
    assert await history(cluster_of(), LOST) == await history(cluster_of(), LOST)


async def test_a_copy_goes_on_like_its_original() -> None:
    cluster, copies = cluster_of(), dict[int, bytes]()

    def keep(second: int) -> None:
        copies[second] = pickle.dumps(cluster)

    told = await history(cluster, LOST, note=keep)
    copy: SimulatedCluster = pickle.loads(copies[12])
    assert await history(copy, LOST, first=12) == told[12:]
    assert copy.objects == cluster.objects


async def test_a_lost_node_is_a_restart_and_its_steps_are_made_again() -> None:
    calm = await replay(cluster_of(), {}, seconds=300)
    lost = await replay(cluster_of(), LOST, seconds=300)
    assert (calm.restarts.infrastructure, lost.restarts.infrastructure) == (0, 1)
    assert calm.cost is not None and lost.cost is not None
    assert lost.cost.held_gpu_microseconds > calm.cost.held_gpu_microseconds


async def test_fewer_nodes_than_the_pace_is_for_take_longer_in_proportion() -> None:
    whole = len(await history(cluster_of(Pace(full_nodes=3)), {}))
    third = len(await history(cluster_of(Pace(full_nodes=3), nodes={"min": 1, "max": 1}), {}))
    assert third - whole == 2 * 40, "40 steps take 40 seconds on all nodes and 120 on one"


async def test_a_queue_without_quota_lets_nothing_run() -> None:
    cluster = cluster_of(queue={"name": "team"})
    cluster.queue = PodGroupQueue(pods=0)
    with pytest.raises(RuntimeError, match="not over after 60 s"):
        await replay(cluster, {}, seconds=60)
    assert cluster.pods()
    assert not cluster.worlds


async def test_a_run_that_is_gone_is_told() -> None:
    cluster = cluster_of()
    cluster.objects.clear()
    with pytest.raises(NotFound, match="default/demo"):
        await settle(cluster)
