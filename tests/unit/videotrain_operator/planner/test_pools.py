"""A run whose stages have pools of their own, from the first pod to the last, in the simulated cluster."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from support.planner_builders import train_stage
from support.planner_lives import cluster_of, pass_seconds

from videotrain_api.resource.status import CostStatus, RunStatus
from videotrain_api.schema import Json
from videotrain_api.vocabulary import ANNOTATION_PRICE, LABEL_POOL
from videotrain_operator.cluster.podview import gpu_resources, pod_view
from videotrain_operator.kube.trim import trim
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash
from videotrain_operator.simulation.queue import PodGroupQueue
from videotrain_operator.simulation.replay import settle

BARE = {
    "gpusPerNode": 0,
    "pricePerNodeHour": "3.60",
    "cpu": "32",
    "nodeSelector": {"class": "cpu"},
    "tolerations": [{"key": "cpu-only", "operator": "Exists", "effect": "NoSchedule"}],
}
CURATE = {"name": "curate", "task": "curate", "curate": {}, "pool": BARE, "nodes": {"min": 2, "max": 3}}
DATASET = {"videos": "s3://videotrain/raw", "latents": "s3://videotrain/latents"}


def pooled(stages: list[Json], machines: int = 4, **spec: Any) -> SimulatedCluster:
    return cluster_of(machines=machines, stages=stages, dataset=DATASET, **spec)


class Watched:
    """Lets a run live and notes every pod that there was."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.pods: dict[str, Json] = {}
        self.together: list[set[str | None]] = []
        """Pools of the pods that held a node, by second."""

    async def until(self, done: Any, most: int = 120) -> RunStatus:
        for _ in range(most):
            plan = (await settle(self.cluster)).plan
            for body in self.cluster.pods():
                self.pods[body["metadata"]["uid"]] = body
            held = [body for body in self.cluster.pods() if body["spec"].get("nodeName")]
            self.together.append({body["metadata"]["labels"].get(LABEL_POOL) for body in held})
            if done(plan.status):
                return plan.status
            self.cluster.tick()
        raise AssertionError(f"not within {most} seconds: {plan.status.phase} {plan.status.progress}")

    async def to_the_end(self) -> RunStatus:
        """Until it succeeded and every pod is gone."""
        return await self.until(lambda status: status.phase == "Succeeded" and not self.cluster.pods())

    def of(self, pool: str | None) -> list[Json]:
        return [body for body in self.pods.values() if body["metadata"]["labels"].get(LABEL_POOL) == pool]


def by_stage(cost: CostStatus | None) -> dict[str, int]:
    assert cost is not None
    assert sum(stage.total_micros for stage in cost.stages) == cost.total_micros
    assert sum(stage.held_gpu_microseconds for stage in cost.stages) == cost.held_gpu_microseconds
    assert not cost.estimated
    return {stage.name: stage.total_micros for stage in cost.stages}


async def test_a_stage_without_gpus_and_one_with_them_get_the_pods_of_their_pools_one_after_the_other() -> None:
    watched = Watched(pooled([CURATE, train_stage(steps=6)]))
    status = await watched.to_the_end()
    assert {state.state for state in status.stages} == {"Succeeded"}
    bare, full = watched.of("curate"), watched.of(None)
    assert len(bare) == 3 and len(full) == 3, "no pod of either pool was made twice"
    for body in bare:
        container = body["spec"]["containers"][0]
        assert body["metadata"]["annotations"][ANNOTATION_PRICE] == "3.60 USD"
        assert "nvidia.com/gpu" not in container["resources"]["limits"]
        assert container["resources"]["requests"]["cpu"] == "32"
        assert {"name": "CUDA_VISIBLE_DEVICES", "value": ""} in container["env"]
        assert body["spec"]["nodeSelector"] == {"class": "cpu"}
        assert body["spec"]["tolerations"][0]["key"] == "cpu-only"
    for body in full:
        assert body["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert "nodeSelector" not in body["spec"]
    curated, trained = status.generations
    assert (curated.world_size, curated.gpus) == (3, 0)
    assert (trained.world_size, trained.gpus) == (3 * 2, 6)
    costs = by_stage(status.cost)
    assert status.cost is not None
    first, second = status.cost.stages
    assert first.held_gpu_microseconds == 0 and first.held_node_microseconds % 1_000_000 == 0
    assert costs["curate"] == first.held_node_microseconds // 1000, "3.60 an hour are 1,000 micros a second"
    assert second.held_gpu_microseconds == 2 * second.held_node_microseconds
    assert costs["train"] == second.held_gpu_microseconds // 1000


async def test_a_pool_is_empty_before_the_next_one_gets_a_node() -> None:
    watched = Watched(pooled([CURATE, train_stage(steps=6)]))
    await watched.to_the_end()
    assert all(len(pools) <= 1 for pools in watched.together)
    held = [next(iter(pools)) for pools in watched.together if pools]
    assert held == sorted(held, key=lambda pool: pool is None), "first those of the stage, then those of the run"


async def test_stages_with_equal_pools_share_their_pods() -> None:
    again = CURATE | {"name": "curate-again"}
    watched = Watched(pooled([CURATE, again, train_stage(steps=4)]))
    status = await watched.to_the_end()
    assert len(watched.of("curate")) == 3 and watched.of("curate-again") == []
    assert set(by_stage(status.cost)) == {"curate", "curate-again", "train"}
    assert by_stage(status.cost)["curate-again"] > 0


async def test_back_in_a_pool_that_was_left_its_pods_are_made_anew_and_nothing_is_billed_twice() -> None:
    stages = [train_stage("one", steps=4), CURATE, train_stage("two", steps=4)]
    watched = Watched(pooled(stages))
    status = await watched.to_the_end()
    assert len(watched.of(None)) == 6 and len(watched.of("curate")) == 3
    costs = by_stage(status.cost)
    assert costs.keys() == {"one", "curate", "two"} and min(costs.values()) > 0


async def test_pods_of_the_stage_before_that_end_late_are_billed_to_it() -> None:
    """Curation on three nodes, training on one: two pods of the first pool may end when training has begun."""
    stages = [CURATE, train_stage(steps=6, nodes={"min": 1, "max": 1})]
    cluster = pooled(stages)
    watched = Watched(cluster)
    await watched.until(lambda status: [s.state for s in status.stages] == ["Succeeded", "Running"])
    slow = next(body["spec"]["nodeName"] for body in cluster.pods() if body["metadata"]["name"] == "demo-w2")
    cluster.nodes_untrusted = "the test says so"
    cluster.lose_node(slow)
    began = await watched.until(lambda status: status.generation == 2)
    cluster.tick()
    began = (await settle(cluster)).plan.status
    lingering = [body["metadata"]["name"] for body in cluster.pods() if body["metadata"]["labels"].get(LABEL_POOL)]
    assert lingering == ["demo-w2"], "its node does not answer"
    before = by_stage(began.cost)
    for _ in range(4):
        cluster.tick()
    later = by_stage((await settle(cluster)).plan.status.cost)
    assert later["curate"] - before["curate"] == 4 * 1000
    assert later["train"] - before["train"] == 4 * 2 * 1000


async def test_a_lost_node_in_each_pool_is_replaced_by_one_of_the_same_pool() -> None:
    watched = Watched(pooled([CURATE, train_stage(steps=12)], machines=6, nodes={"min": 3, "max": 3}))
    cluster = watched.cluster
    for generation, pool in ((1, "curate"), (3, None)):
        await watched.until(lambda status, wanted=generation: status.generation == wanted)
        for _ in range(3):
            cluster.tick()
        await settle(cluster)
        victim = next(body for body in cluster.pods() if body["metadata"]["name"] == "demo-w1")
        assert victim["metadata"]["labels"].get(LABEL_POOL) == pool
        cluster.lose_node(victim["spec"]["nodeName"])
        await watched.until(lambda status, wanted=generation + 1: status.generation == wanted)
    status = await watched.to_the_end()
    assert len(watched.of("curate")) == 4 and len(watched.of(None)) == 4
    assert status.restarts.infrastructure == 2


async def test_in_a_queue_the_pods_of_another_pool_are_a_group_of_their_own() -> None:
    cluster = pooled([CURATE, train_stage(steps=6)], machines=8, queue={"name": "team"})
    cluster.queue = PodGroupQueue(3)
    watched = Watched(cluster)
    status = await watched.to_the_end()
    groups = [{body["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for body in watched.of(pool)}
              for pool in ("curate", None)]  # fmt: skip
    assert [len(group) for group in groups] == [1, 1] and groups[0] != groups[1]
    assert cluster.queue.surplus == []
    assert len(watched.pods) == 6
    assert all(len(pools) <= 1 for pools in watched.together), "the quota is that of one pool"
    assert by_stage(status.cost)["curate"] > 0


@pytest.mark.parametrize("second", range(4, 24, 2))
async def test_an_operator_that_forgets_everything_between_two_pools_goes_on_in_the_right_one(second: int) -> None:
    watched = Watched(pooled([CURATE, train_stage(steps=6)]))
    await pass_seconds(watched.cluster, second)
    watched.cluster.wipe_status()
    status = await watched.to_the_end()
    assert {state.state for state in status.stages} == {"Succeeded"}
    assert all(len(pools) <= 1 for pools in watched.together)
    assert status.cost is not None
    assert sum(stage.total_micros for stage in status.cost.stages) == status.cost.total_micros


async def test_what_the_operator_keeps_of_a_pod_tells_its_pool_its_gpus_and_its_price() -> None:
    cluster = pooled([CURATE, train_stage(steps=6)])
    await pass_seconds(cluster, 3)
    for body in cluster.pods():
        kept = pod_view(trim(body), {}, gpu_resources(cluster.run))
        assert (kept.pool, kept.gpus, kept.price) == ("curate", 0, "3.60 USD")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", range(1, 50, 6))
async def test_an_operator_that_dies_at_any_write_bills_each_pod_once(write: int, after: bool) -> None:
    watched = Watched(pooled([CURATE, train_stage(steps=4)]))
    watched.cluster.crash_at, watched.cluster.crash_after = write, after
    with suppress(OperatorCrash):
        await watched.to_the_end()
    watched.cluster.crash_at = None
    status = await watched.to_the_end()
    assert len(watched.pods) == 6
    assert by_stage(status.cost).keys() == {"curate", "train"}
