"""Pods of a failed run end and stay until its TTL, for whoever reads their logs; they hold and cost nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from support.at_length import cases
from support.planner_builders import manifest, train_stage
from support.planner_lives import pass_seconds

from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.queue import PodGroupQueue
from videotrain_operator.simulation.world import Pace


def cluster(**spec: Any) -> SimulatedCluster:
    return SimulatedCluster(manifest(stages=[train_stage(steps=40)], **spec), nodes=3, pace=Pace(every_steps=4))


def phases(run: SimulatedCluster) -> list[str]:
    return [body["status"]["phase"] for body in run.pods()]


async def failed(run: SimulatedCluster) -> None:
    await pass_seconds(run, 10)
    run.fail_worker("demo-w1", 64)  # CONFIG: no retry helps
    assert (await pass_seconds(run, 5)).phase == "Failed"


async def test_they_end_and_stay_and_are_not_billed_after_their_end() -> None:
    run = cluster()
    await failed(run)
    assert phases(run) == ["Failed"] * 3
    assert not any("deletionTimestamp" in body["metadata"] for body in run.pods())
    status = await pass_seconds(run, 2)
    before = status.cost
    assert before is not None and (before.rate_per_hour, status.nodes.ready, status.active_since) == ("0.00", 0, None)
    writes = run.writes
    status = await pass_seconds(run, cases(900, 3600))
    assert status.cost is not None and status.cost.total_micros == before.total_micros
    ends = [body["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] for body in run.pods()]
    begun = [body["status"]["conditions"][0]["lastTransitionTime"] for body in run.pods()]
    held = sum(
        (datetime.fromisoformat(e) - datetime.fromisoformat(b)).total_seconds()
        for e, b in zip(ends, begun, strict=True)
    )
    assert status.cost.held_gpu_microseconds == 2 * held * 1_000_000
    assert run.writes == writes, "pods that are over cost no write"


async def test_they_go_with_the_run_when_its_ttl_is_over() -> None:
    run = cluster(ttlSecondsAfterFinished=100)
    await failed(run)
    await pass_seconds(run, 80)
    assert phases(run) == ["Failed"] * 3
    while ("VideoTrainingRun", "demo") in run.objects:
        await pass_seconds(run, 1)
    assert run.pods() == []


async def test_one_that_does_not_end_by_itself_is_deleted() -> None:
    run = cluster(failurePolicy={"graceSeconds": 20})
    await pass_seconds(run, 10)
    run.agents[run.objects["Pod", "demo-w2"]["metadata"]["uid"]].silent = True
    run.fail_worker("demo-w1", 64)
    await pass_seconds(run, 20)
    assert phases(run) == ["Failed", "Failed", "Running"]
    await pass_seconds(run, 20)
    assert phases(run) == ["Failed", "Failed"]


async def test_pods_of_a_run_that_succeeded_or_is_deleted_go() -> None:
    run = cluster()
    assert (await pass_seconds(run, 60)).phase == "Succeeded"
    assert run.pods() == []


async def test_a_queue_has_its_pods_back_at_once() -> None:
    run = cluster(queue={"name": "video"})
    run.queue = PodGroupQueue(3)
    await failed(run)
    await pass_seconds(run, 10)
    assert run.pods() == []


async def test_what_nobody_holds_back_is_not_called_admitted() -> None:
    """Kueue is not there: the run's pods run, and no quota counts them."""
    run = cluster(queue={"name": "video"})
    status = await pass_seconds(run, 10)
    told = next(c for c in status.conditions if c.type == "QuotaReserved")
    assert (told.status, told.reason) == ("False", "NotQueued") and "no quota counts them" in told.message


async def test_a_cordon_moves_a_world_only_if_its_pool_says_so() -> None:
    for policy, moved in (("Stay", False), ("Leave", True)):
        run = cluster(pool={"gpusPerNode": 2, "pricePerGpuHour": "2.00", "onCordon": policy})
        before = await pass_seconds(run, 10)
        run.cordon("node-1")
        status = await pass_seconds(run, 5)
        assert (status.generation > before.generation) is moved, policy
        assert bool(status.restarts.preemption) is moved
