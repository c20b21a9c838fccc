"""When the operator writes a run's network policy: before its pods, once, and again when it is gone or has changed."""

from __future__ import annotations

import pytest
from support.planner_lives import KEY, cluster_of, pass_seconds, running

from videotrain_api.render.network import NetworkRules
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.reconcile import reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash
from videotrain_operator.simulation.replay import settle

POLICY = ("NetworkPolicy", "demo-workers")


@pytest.fixture
def cluster() -> SimulatedCluster:
    found = cluster_of()
    found.rules = ClusterRules(network=NetworkRules())
    return found


@pytest.mark.parametrize("write", range(1, 8))
async def test_it_stands_before_the_first_pod(cluster: SimulatedCluster, write: int) -> None:
    cluster.crash_at = write
    with pytest.raises(OperatorCrash):
        await reconcile(cluster, KEY, lambda: cluster.now, cluster, rules=cluster.rules)
    assert POLICY in cluster.objects or not cluster.pods()
    await running(cluster)
    owner = cluster.objects[POLICY]["metadata"]["ownerReferences"][0]
    assert owner["uid"] == cluster.run["metadata"]["uid"] and owner["controller"] is True


async def test_it_is_written_once(cluster: SimulatedCluster) -> None:
    other = cluster_of()
    await running(cluster)
    await running(other)
    assert cluster.writes == other.writes + 1
    version = cluster.objects[POLICY]["metadata"]["resourceVersion"]
    await pass_seconds(cluster, 20)
    assert cluster.objects[POLICY]["metadata"]["resourceVersion"] == version


async def test_one_that_is_deleted_comes_again_and_an_edit_is_undone(cluster: SimulatedCluster) -> None:
    await running(cluster)
    wanted = cluster.objects[POLICY]["spec"]
    cluster.drop(*POLICY)
    await settle(cluster)
    assert cluster.objects[POLICY]["spec"] == wanted
    cluster.objects[POLICY]["spec"] = wanted | {"ingress": [{}]}
    await settle(cluster)
    assert cluster.objects[POLICY]["spec"] == wanted


async def test_other_rules_reach_runs_that_run(cluster: SimulatedCluster) -> None:
    await running(cluster)
    cluster.rules = ClusterRules(network=NetworkRules(storage_ports=[9000]))
    await settle(cluster)
    assert 9000 in [
        port["port"] for rule in cluster.objects[POLICY]["spec"]["egress"] for port in rule.get("ports", [])
    ]


async def test_a_run_that_holds_no_pods_needs_none(cluster: SimulatedCluster) -> None:
    cluster.edit(suspend=True)
    await pass_seconds(cluster, 5)
    assert POLICY not in cluster.objects
    cluster.edit(suspend=False)
    await running(cluster)
    assert POLICY in cluster.objects


async def test_without_rules_there_is_none() -> None:
    cluster = cluster_of()
    await running(cluster)
    assert POLICY not in cluster.objects
