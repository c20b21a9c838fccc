"""When the operator holds a run to the policy for pods: before its first pods, never in the middle of its life."""

from __future__ import annotations

import pytest
from support.planner_lives import cluster_of, condition, pass_seconds, running, told

from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.simulation.cluster import SimulatedCluster

ANY, RESTRICTED = ClusterRules(pods="any"), ClusterRules()
TEMPLATE = {"spec": {"hostNetwork": True}}


@pytest.fixture
def cluster() -> SimulatedCluster:
    return cluster_of(podTemplate=TEMPLATE)


async def test_a_run_that_came_past_the_webhook_gets_nothing_until_the_policy_allows_it(
    cluster: SimulatedCluster,
) -> None:
    status = await pass_seconds(cluster, 5)
    accepted = condition(status, "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "PodNotAllowed")
    assert (
        "spec.podTemplate.spec.hostNetwork: True" in accepted.message and "podTemplate.policy: any" in accepted.message
    )
    assert status.phase == "Invalid" and len(told(cluster, "PodNotAllowed")) == 1
    assert [kind for kind, _ in cluster.objects] == ["VideoTrainingRun"]
    cluster.rules = ANY
    status = await running(cluster)
    assert condition(status, "Accepted").status == "True"


async def test_a_stricter_policy_leaves_runs_that_run_alone(cluster: SimulatedCluster) -> None:
    cluster.rules = ANY
    await running(cluster)
    cluster.rules = RESTRICTED
    cluster.lose_node("node-1")
    cluster.edit(activeDeadlineSeconds=86_400)
    status = await pass_seconds(cluster, 20)
    assert condition(status, "Accepted").status == "True" and status.phase in ("Running", "Succeeded")
    cluster.restore_node("node-1")
    for name in [pod["metadata"]["name"] for pod in cluster.pods()]:
        cluster.force_delete(name)
    status = await pass_seconds(cluster, 20)
    assert status.phase in ("Running", "Succeeded"), "also when it lost all of its pods"


async def test_an_emptied_status_does_not_make_a_run_new(cluster: SimulatedCluster) -> None:
    cluster.rules = ANY
    await running(cluster)
    cluster.rules = RESTRICTED
    cluster.wipe_status()
    status = await pass_seconds(cluster, 10)
    assert condition(status, "Accepted").status == "True" and status.phase in ("Running", "Succeeded")


async def test_a_run_that_begins_anew_waits_without_pods_and_never_fails(cluster: SimulatedCluster) -> None:
    cluster.rules = ANY
    await running(cluster)
    cluster.edit(suspend=True)
    await pass_seconds(cluster, 10)
    cluster.rules = RESTRICTED
    cluster.edit(suspend=False)
    status = await pass_seconds(cluster, 60)
    assert condition(status, "Accepted").reason == "PodNotAllowed" and not cluster.pods()
    assert status.phase not in ("Failed", "Invalid") and condition(status, "Failed") is None
    cluster.edit(suspend=True)
    status = await pass_seconds(cluster, 5)
    assert (status.phase, condition(status, "Accepted").status) == ("Suspended", "True")
    cluster.edit(suspend=False)
    assert condition(await pass_seconds(cluster, 5), "Accepted").status == "False"
    cluster.rules = ANY
    status = await pass_seconds(cluster, 30)
    assert status.phase in ("Running", "Succeeded") and condition(status, "Accepted").status == "True"


async def test_what_the_pool_may_not_ask_for_can_be_mended() -> None:
    pool = {"gpusPerNode": 2, "pricePerGpuHour": "3.60", "priorityClassName": "system-node-critical"}
    cluster = cluster_of(pool=pool)
    status = await pass_seconds(cluster, 3)
    assert status.phase == "Invalid" and "spec.pool.priorityClassName" in condition(status, "Accepted").message
    cluster.edit(pool=pool | {"priorityClassName": "research"})
    await running(cluster)
