"""The operator gets another master key while runs go on: their agents know it no longer."""

from __future__ import annotations

from support.planner_lives import cluster_of, pass_seconds, running, told

from videotrain_api.signing import KEY_BYTES
from videotrain_operator.cluster.podview import pod_view
from videotrain_operator.kube.trim import trim
from videotrain_operator.simulation.cluster import SimulatedCluster

GPU_RESOURCE = "nvidia.com/gpu"
OTHER = b"o" * KEY_BYTES


def keys_of(cluster: SimulatedCluster) -> set[str]:
    volumes = (volume for body in cluster.pods() for volume in body["spec"]["volumes"] if volume["name"] == "files")
    sources = (source for volume in volumes for source in volume["projected"]["sources"])
    return {source["secret"]["name"] for source in sources if "secret" in source}


async def test_a_run_goes_on_with_pods_of_the_new_key_and_loses_no_step() -> None:
    cluster = cluster_of(machines=4, steps=400)
    before = await running(cluster)
    old = keys_of(cluster)
    cluster.master_key = OTHER
    status = await pass_seconds(cluster, 90)
    assert status.phase == "Running"
    assert status.generation > before.generation
    assert len(keys_of(cluster)) == 1
    assert keys_of(cluster).isdisjoint(old)
    why, begun = told(cluster, "Preempted")
    assert "demo-w0, demo-w1" in why
    assert "mounts another signing key than the operator has" in why
    assert begun.startswith("generation 2: ")
    assert "0 steps were lost" in told(cluster, "Recovered")[0]
    assert status.restarts.preemption == 1
    assert status.restarts.application == status.restarts.infrastructure == 0
    settled = await pass_seconds(cluster, 40)
    assert settled.generation == status.generation


async def test_a_run_whose_operator_lost_its_key_comes_to_its_end() -> None:
    cluster = cluster_of(machines=4)
    await running(cluster)
    cluster.master_key = OTHER
    assert (await pass_seconds(cluster, 200)).phase == "Succeeded"


async def test_a_key_that_comes_back_before_pods_were_made_anew_replaces_nothing_twice() -> None:
    cluster = cluster_of(machines=4, steps=400)
    first = await running(cluster)
    kept, cluster.master_key = cluster.master_key, OTHER
    await pass_seconds(cluster, 2)
    cluster.master_key = kept
    status = await pass_seconds(cluster, 90)
    assert status.phase == "Running"
    assert status.generation <= first.generation + 2
    assert len(keys_of(cluster)) == 1


async def test_the_secret_of_a_pod_is_known_of_what_the_operator_keeps_in_memory() -> None:
    cluster = cluster_of()
    await running(cluster)
    (name,) = keys_of(cluster)
    kept = [trim(body) for body in cluster.pods()]
    assert {pod_view(body, {}, [GPU_RESOURCE]).key_secret for body in kept} == {name}
    for body in kept:
        body["spec"]["volumes"] = []
    assert {pod_view(body, {}, [GPU_RESOURCE]).key_secret for body in kept} == {None}
