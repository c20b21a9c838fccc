"""A run whose pods are admitted by a queue."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from support.planner_lives import KEY, cluster_of, condition, pass_seconds, running

from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import NamespaceGoing, NotFound, WatchEvent
from videotrain_operator.cluster.orphans import release_orphans
from videotrain_operator.reconcile import RunLoop
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash
from videotrain_operator.simulation.queue import PodGroupQueue
from videotrain_operator.simulation.replay import settle


def queued(pods: int = 3, **spec: Any) -> SimulatedCluster:
    cluster = cluster_of(machines=5, queue={"name": "team"}, **spec)
    cluster.queue = PodGroupQueue(pods)
    return cluster


def groups(cluster: SimulatedCluster) -> set[tuple[str, str]]:
    heads = [body["metadata"] for body in cluster.pods()]
    name, count = "kueue.x-k8s.io/pod-group-name", "kueue.x-k8s.io/pod-group-total-count"
    return {(head["labels"][name], head["annotations"][count]) for head in heads}


def places(cluster: SimulatedCluster) -> list[str]:
    alive = [body["metadata"] for body in cluster.pods() if body["status"]["phase"] == "Running"]
    return sorted(head["labels"]["kueue.x-k8s.io/pod-group-pod-index"] for head in alive)


async def test_pods_wait_in_the_queue_together_and_the_start_deadline_waits_too() -> None:
    cluster = queued(pods=0, startDeadlineSeconds=20)
    status = await pass_seconds(cluster, 40)
    assert len(groups(cluster)) == 1
    assert {count for _, count in groups(cluster)} == {"3"}
    assert condition(status, "QuotaReserved").status == "False"
    assert condition(status, "QuotaReserved").reason == "Queued"
    assert condition(status, "Failed") is None
    assert condition(status, "Suspended") is None, "a queue's word is not the user's"
    assert cluster.queue is not None
    cluster.queue.pods = 3
    status = await pass_seconds(cluster, 15)
    assert status.phase == "Running"
    assert condition(status, "QuotaReserved").reason == "Admitted"


async def test_an_operator_that_dies_among_the_pods_of_a_group_completes_it() -> None:
    for write in range(1, 12):
        cluster = queued()
        cluster.crash_at = write
        with suppress(OperatorCrash):
            await settle(cluster)
        cluster.crash_at = None
        await settle(cluster)
        assert {count for _, count in groups(cluster)} == {"3"}
        assert len(groups(cluster)) == 1
        assert (await pass_seconds(cluster, 20)).phase == "Running"


async def test_preemption_by_the_queue_is_counted_as_such_and_the_run_queues_again() -> None:
    cluster = queued()
    before = await running(cluster, 16)
    assert cluster.queue is not None
    cluster.queue.pods = 0
    cluster.queue.preempt(cluster)
    status = await pass_seconds(cluster, 15)
    assert status.restarts.preemption == 1
    assert status.restarts.infrastructure == status.restarts.application == 0
    assert condition(status, "QuotaReserved").status == "False"
    cluster.queue.pods = 3
    status = await pass_seconds(cluster, 20)
    assert status.phase == "Running"
    assert status.generation > before.generation
    assert status.restarts.preemption == 1
    assert cluster.queue.surplus == []


async def test_a_replacement_takes_the_place_in_the_group_and_never_comes_too_early() -> None:
    cluster = queued()
    await running(cluster, 16)
    (group,) = groups(cluster)
    cluster.finish_pod("demo-w1", 137)
    status = await pass_seconds(cluster, 25)
    assert groups(cluster) == {group}
    assert len(cluster.pods()) == 3
    assert len(status.generations[-1].members) == 3 or status.phase == "Running"
    assert cluster.queue is not None
    assert cluster.queue.surplus == []


async def test_a_pod_that_leaves_a_drained_node_is_replaced_in_its_place() -> None:
    cluster = queued()
    await running(cluster, 16)
    (group,) = groups(cluster)
    (left,) = [body for body in cluster.pods() if body["metadata"]["name"] == "demo-w1"]
    cluster.reclaim(left["spec"]["nodeName"])
    status = await pass_seconds(cluster, 30)
    assert groups(cluster) == {group}
    assert places(cluster) == ["0", "1", "2"]
    assert status.phase == "Running"
    assert status.restarts.preemption == 1
    assert cluster.queue is not None
    assert cluster.queue.surplus == []


async def test_a_pod_that_is_complete_for_the_queue_is_replaced_by_a_group_of_its_own() -> None:
    cluster = queued()
    await running(cluster, 16)
    cluster.finish_pod("demo-w1", 0)
    status = await pass_seconds(cluster, 30)
    assert sorted(count for _, count in groups(cluster)) == ["1", "3"]
    assert status.phase == "Running"
    assert cluster.queue is not None
    assert cluster.queue.surplus == []


async def test_a_pod_of_a_lost_node_leaves_the_queue_and_is_replaced_in_its_place() -> None:
    cluster = queued()
    await running(cluster, 16)
    (group,) = groups(cluster)
    (lost,) = [body for body in cluster.pods() if body["metadata"]["name"] == "demo-w1"]
    cluster.nodes[lost["spec"]["nodeName"]] = False
    status = await pass_seconds(cluster, 30)
    assert groups(cluster) == {group}
    assert places(cluster) == ["0", "1", "2"]
    assert status.phase == "Running"
    assert all(cluster.nodes[body["spec"]["nodeName"]] for body in cluster.pods())
    assert status.restarts.infrastructure == 1
    assert cluster.queue is not None
    assert cluster.queue.surplus == []


async def test_the_queue_lets_go_of_the_pods_of_a_run_that_was_deleted() -> None:
    cluster = queued()
    await running(cluster, 16)
    await release_orphans(cluster, "default", "demo")
    for body in cluster.pods():
        cluster.finish_pod(body["metadata"]["name"], 143)
        await cluster.delete("Pod", "default", body["metadata"]["name"])
    assert len(cluster.pods()) == 3, "the queue would wait for their replacements"
    assert cluster.queue is not None
    cluster.queue.admit(cluster)
    assert cluster.pods() == []


async def test_a_run_that_is_made_again_at_once_lets_go_of_the_pods_of_the_earlier_one() -> None:
    cluster = queued()
    await running(cluster, 16)
    cluster.run["metadata"]["uid"] = "another"
    loop = RunLoop(cluster, KEY, cluster, clock=lambda: cluster.now)
    loop.notice(WatchEvent("DELETED", cluster.run))
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(60):
        while not all("kueue.x-k8s.io/retriable-in-group" in b["metadata"]["annotations"] for b in cluster.pods()):
            await asyncio.sleep(0.01)
    task.cancel()


@pytest.mark.parametrize("error", [NotFound("demo"), NamespaceGoing("default")], ids=["run", "namespace"])
async def test_a_loop_whose_run_or_namespace_goes_lets_go_of_its_pods(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = queued()
    await running(cluster, 16)

    async def going(kind: str, namespace: str, name: str) -> Json:
        raise error

    monkeypatch.setattr(cluster, "get", going)
    loop = asyncio.create_task(RunLoop(cluster, KEY, cluster, clock=lambda: cluster.now).run())
    async with asyncio.timeout(60):
        while not all("kueue.x-k8s.io/retriable-in-group" in b["metadata"]["annotations"] for b in cluster.pods()):
            await asyncio.sleep(0.01)
    loop.cancel()


async def test_a_pod_that_waits_and_is_deleted_by_hand_is_replaced_in_its_place() -> None:
    cluster = queued(pods=0)
    await pass_seconds(cluster, 3)
    (group,) = groups(cluster)
    await cluster.delete("Pod", "default", "demo-w1")
    await pass_seconds(cluster, 5)
    assert groups(cluster) == {group}
    assert len(cluster.pods()) == 3
    assert cluster.queue is not None
    assert cluster.queue.surplus == []
    cluster.queue.pods = 3
    assert (await pass_seconds(cluster, 20)).phase == "Running"


async def test_a_run_in_a_long_queue_says_so_at_once() -> None:
    cluster = queued(pods=0)
    status = (await settle(cluster)).plan.status
    assert condition(status, "QuotaReserved").reason == "Queued"


async def test_a_group_that_is_being_stopped_makes_no_world_of_what_is_left_of_it() -> None:
    cluster = queued(nodes={"min": 1, "max": 3})
    before = await running(cluster, 16)
    assert cluster.queue is not None
    cluster.queue.pods = 0
    _, *rest = cluster.pods()
    cluster.queue.preempt(cluster)
    for body in rest:
        del body["metadata"]["deletionTimestamp"]
        body["status"]["conditions"].pop()
    status = (await settle(cluster)).plan.status
    assert [member for g in status.generations if g.number > before.generation for member in g.members] == []
    for body in rest:
        body["metadata"]["deletionTimestamp"] = cluster.stamp()
    status = await pass_seconds(cluster, 15)
    assert status.restarts.preemption == 1


async def test_more_nodes_are_a_group_of_their_own() -> None:
    cluster = queued(pods=4, steps=120, nodes={"min": 1, "max": 2})
    await running(cluster, 16)
    cluster.edit(nodes={"min": 1, "max": 4})
    status = await pass_seconds(cluster, 40)
    assert sorted(count for _, count in groups(cluster)) == ["2", "2"]
    assert status.nodes.current == 4


async def test_a_smaller_world_that_still_waits_is_a_new_group() -> None:
    cluster = queued(pods=2)
    await pass_seconds(cluster, 5)
    (old,) = groups(cluster)
    cluster.edit(nodes={"min": 1, "max": 2})
    status = await pass_seconds(cluster, 25)
    (new,) = groups(cluster)
    assert new[1] == "2"
    assert new[0] != old[0]
    assert status.phase == "Running"


async def test_the_queue_does_not_wake_what_the_user_suspended() -> None:
    cluster = queued(pods=0)
    await pass_seconds(cluster, 3)
    cluster.edit(suspend=True)
    await pass_seconds(cluster, 8)
    assert cluster.queue is not None
    cluster.queue.pods = 3
    status = await pass_seconds(cluster, 10)
    assert status.phase == "Suspended"
    assert cluster.pods() == []
    cluster.edit(suspend=False)
    assert (await pass_seconds(cluster, 20)).phase == "Running"


async def test_pods_of_a_finished_queued_run_are_released_by_the_queue() -> None:
    cluster = queued(steps=20)
    await running(cluster, 12)
    cluster.finish_pod("demo-w1", 137)
    status = await pass_seconds(cluster, 60)
    assert status.phase == "Succeeded"
    assert cluster.pods() == []
