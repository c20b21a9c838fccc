"""Runs in the queue of a real Kueue: admission as a gang, waiting, preemption, suspension, replacement, and the end."""

import asyncio
import uuid

import pytest
import pytest_asyncio
from support.controlplane import install_crds
from support.kueue import Kueue, NotToBeHad, installation
from support.plane_objects import create_namespace, delete_nodes
from support.queue_bench import POOL, GracefulPlane, QueueBench

from videotrain.controlplane.kwok import create_nodes
from videotrain_api.vocabulary import KIND
from videotrain_operator.kube.client import connect

NODES = 6
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
"""The first test on a machine builds Kueue."""


@pytest.fixture(scope="module")
def kueue(tmp_path_factory):
    try:
        found = installation()
    except NotToBeHad as error:
        pytest.skip(str(error))
    with GracefulPlane(tmp_path_factory.mktemp("queue-plane")) as plane:
        install_crds(plane)
        kueue = Kueue(plane, found, tmp_path_factory.mktemp("kueue"))
        try:
            kueue.start()
            yield plane, kueue
        finally:
            kueue.stop()


@pytest_asyncio.fixture
async def bench(kueue, tmp_path):
    plane, manager = kueue
    namespace = f"q-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(create_namespace, plane, namespace)
    nodes = [f"{namespace}-{number}" for number in range(NODES)]
    await asyncio.to_thread(lambda: create_nodes(plane.api(), nodes, labels={POOL: namespace}))
    async with connect(str(plane.kubeconfig())) as client:
        bench = QueueBench(plane, client, namespace, tmp_path)
        bench.kueue = manager
        try:
            async with bench.served():
                yield bench
                await bench.clear()
        finally:
            await asyncio.to_thread(delete_nodes, plane, nodes)


async def test_a_gang_waits_for_its_quota_starts_as_one_and_leaves_nothing_behind(bench):
    await bench.set_quota(2)
    await bench.submit("big", 3)
    waits = await bench.becomes("big", "QuotaReserved", "False", "Queued")
    await bench.waits_for(lambda: bench.workload_is("big", "QuotaReserved", "False"), "Kueue knows that it waits")
    assert len(bench.gated("big")) == 3
    assert "team" in waits["message"]
    assert bench.billed("big") == 0
    await bench.set_quota(3)
    await bench.is_running("big", 3)
    await bench.becomes("big", "QuotaReserved", "True", "Admitted")
    (group,) = bench.groups("big")
    assert [body["metadata"]["name"] for body in bench.workloads()] == [group]
    await bench.client.delete(KIND, bench.namespace, "big")
    await bench.waits_for(lambda: not bench.pods("big") and not bench.workloads(), "nothing is left")


async def test_a_second_run_waits_unbilled_and_starts_when_the_first_is_complete(bench):
    await bench.set_quota(3)
    await bench.submit("first", 2)
    await bench.is_running("first", 2)
    await bench.submit("second", 2)
    await bench.becomes("second", "QuotaReserved", "False", "Queued")
    await bench.waits_for(lambda: bench.workload_is("second", "QuotaReserved", "False"), "Kueue has looked at it")
    step = bench.agents.step("first")
    await bench.waits_for(lambda: bench.agents.step("first") > step + 1, "the first goes on")
    assert len(bench.gated("second")) == 2
    assert bench.billed("second") == 0
    await bench.complete("first")
    assert bench.billed("first") > 0
    await bench.is_running("second", 2)
    await bench.waits_for(lambda: not bench.pods("first") and not bench.workloads("first"), "it leaves nothing")


@pytest.mark.parametrize("nodes", [3, {"min": 1, "max": 3}], ids=["rigid", "elastic"])
async def test_a_preempted_run_saves_is_told_so_and_comes_back(bench, nodes):
    await bench.set_quota(3)
    await bench.submit("modest", nodes, "low", elasticity={"waitForMaxSeconds": 60})
    await bench.is_running("modest", 3)
    (group,) = bench.groups("modest")
    before = {pod["metadata"]["uid"] for pod in bench.pods("modest")}
    await bench.submit("urgent", 2, "high")
    await bench.is_running("urgent", 2)
    await bench.becomes("modest", "QuotaReserved", "False", "Queued")
    await bench.waits_for(lambda: len(bench.gated("modest")) == 3, "it stands in the queue again, whole")
    assert bench.restarts("modest") == {"preemption": 1}
    assert not bench.standing("modest")
    assert {bench.graces[uid] for uid in before} == {50}, "graceSeconds and a margin"
    assert any("StoppedByQueue" in line for line in bench.messages("modest"))
    await bench.complete("urgent")
    await bench.is_running("modest", 3)
    assert bench.groups("modest") == {group}, "and keeps its place in the queue"
    assert bench.restarts("modest") == {"preemption": 1}


async def test_a_suspended_run_gives_its_quota_away_and_queues_again_when_it_is_resumed(bench):
    await bench.set_quota(2)
    await bench.submit("one", 2)
    await bench.is_running("one", 2)
    await bench.submit("two", 2)
    await bench.becomes("two", "QuotaReserved", "False", "Queued")
    await bench.edit("one", suspend=True)
    await bench.waits_for(lambda: bench.phase("one") == "Suspended", "the first has let go")
    await bench.is_running("two", 2)
    assert not bench.workloads("one")
    await bench.edit("one", suspend=False)
    await bench.waits_for(lambda: len(bench.gated("one")) == 2, "the first waits")
    await bench.edit("two", suspend=True)
    await bench.is_running("one", 2)
    assert bench.restarts("one") == bench.restarts("two") == {}


async def test_the_replacement_of_a_failed_pod_takes_its_place_and_its_quota(bench):
    await bench.set_quota(3)
    await bench.submit("one", 3)
    await bench.is_running("one", 3)
    await bench.submit("waiting", 1)
    await bench.becomes("waiting", "QuotaReserved", "False", "Queued")
    (group,) = bench.groups("one")
    before = {pod["metadata"]["uid"] for pod in bench.pods("one")}
    await bench.fail_pod("one-w1")
    await bench.waits_for(lambda: bench.status("one")["generation"] > 1, "another world")
    await bench.is_running("one", 3)
    await bench.waits_for(lambda: len(bench.pods("one")) == 3, "the dead pod is gone")
    assert bench.groups("one") == {group}
    assert len(before & {pod["metadata"]["uid"] for pod in bench.pods("one")}) == 2
    assert len(bench.gated("waiting")) == 1
    assert bench.restarts("one") == {"application": 1}


async def drain(bench, pod):
    """What `kubectl drain` does to the node of one pod."""
    head, node = pod["metadata"], pod["spec"]["nodeName"]
    await bench.client.patch("Node", "", node, {"spec": {"unschedulable": True}}, manager="test")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": head["name"]}}
    await bench.client.create_subresource("Pod", head["namespace"], head["name"], "eviction", eviction)


async def test_a_pod_that_leaves_a_drained_node_is_replaced(bench):
    await bench.set_quota(3)
    await bench.submit("one", 3)
    await bench.is_running("one", 3)
    left = next(pod for pod in bench.pods("one") if pod["metadata"]["name"] == "one-w1")
    await drain(bench, left)
    await bench.waits_for(lambda: bench.status("one")["generation"] > 1, "another world")
    await bench.is_running("one", 3)
    await bench.waits_for(lambda: not bench.gated("one") and len(bench.standing("one")) == 3, "three pods run")
    assert bench.restarts("one") == {"preemption": 1}


async def test_a_pod_that_waits_and_is_deleted_by_hand_is_replaced(bench):
    await bench.set_quota(1)
    await bench.submit("one", 2)
    await bench.waits_for(lambda: len(bench.gated("one")) == 2, "it waits")
    await bench.client.delete("Pod", bench.namespace, "one-w1")
    await bench.waits_for(lambda: len(bench.gated("one")) == 2 and "one-w1" not in bench.gated("one"), "another pod")
    await bench.set_quota(2)
    await bench.is_running("one", 2)
    assert len(bench.groups("one")) == len(bench.workloads("one")) == 1


async def test_a_pod_of_a_silent_node_is_replaced_although_nobody_can_say_how_it_ended(bench):
    await bench.set_quota(3)
    await bench.submit("one", 3)
    await bench.is_running("one", 3)
    (group,) = bench.groups("one")
    lost = next(pod for pod in bench.pods("one") if pod["metadata"]["name"] == "one-w1")
    await bench.silence(lost["spec"]["nodeName"])
    await bench.waits_for(lambda: bench.status("one")["generation"] > 1, "another world")
    await bench.is_running("one", 3)
    assert lost["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in bench.standing("one")}
    assert bench.groups("one") == {group}
    assert bench.restarts("one") == {"infrastructure": 1}


async def test_a_run_grows_by_a_group_of_its_own(bench):
    await bench.set_quota(4)
    await bench.submit("one", {"min": 1, "max": 2})
    await bench.is_running("one", 2)
    await bench.edit("one", nodes={"min": 1, "max": 4})
    await bench.waits_for(lambda: len(bench.standing("one")) == 4, "the newcomers run")
    assert len(bench.groups("one")) == len(bench.workloads("one")) == 2


async def test_a_run_whose_queue_does_not_exist_waits_and_goes_on_when_it_is_made(bench):
    await bench.submit("early", 1)
    await bench.becomes("early", "QuotaReserved", "False", "Queued")
    await bench.waits_for(lambda: bench.workload_is("early", "QuotaReserved", "False"), "Kueue knows of it")
    await bench.set_quota(1)
    await bench.is_running("early", 1)


async def test_a_run_that_is_deleted_and_made_again_at_once_is_admitted_again(bench):
    await bench.set_quota(2)
    await bench.submit("one", 2)
    await bench.is_running("one", 2)
    old = bench.groups("one")
    await bench.client.delete(KIND, bench.namespace, "one")
    await bench.waits_for(lambda: not bench.run("one"), "the run is gone, its pods are not")
    await bench.submit("one", 2)
    await bench.is_running("one", 2)
    assert not old & bench.groups("one")


async def test_nobody_waits_for_kueue_when_a_namespace_with_queued_runs_is_deleted(bench):
    await bench.set_quota(2)
    await bench.submit("runs", 2, failurePolicy={"graceSeconds": 1})
    await bench.is_running("runs", 2)
    await bench.submit("waits", 2)
    await bench.waits_for(lambda: len(bench.gated("waits")) == 2, "the second waits")
    await bench.client.delete("Namespace", "", bench.namespace)
    await bench.waits_for(lambda: not bench.left(), "nothing is left")


async def test_what_was_deleted_while_no_operator_was_there_is_set_free_by_the_next_one(bench):
    await bench.set_quota(2)
    await bench.submit("one", 2)
    await bench.is_running("one", 2)
    bench.operators.end_all()
    await bench.client.delete(KIND, bench.namespace, "one")
    await bench.waits_for(lambda: {pod["status"]["phase"] for pod in bench.pods("one")} == {"Failed"}, "its pods end")
    bench.operators.start()
    await bench.waits_for(lambda: not bench.pods("one") and not bench.workloads("one"), "they go")
