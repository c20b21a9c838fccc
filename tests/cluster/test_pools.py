"""A run that curates on nodes without GPUs and trains on nodes with them, on a real control plane."""

import asyncio
import uuid

import pytest
import pytest_asyncio
from support.controlplane import install_crds
from support.plane_objects import create_namespace, delete_nodes
from support.planner_builders import train_stage
from support.queue_bench import GracefulPlane, QueueBench, queued_run

from videotrain.controlplane.kwok import H200_NODE, create_nodes
from videotrain_api.vocabulary import ANNOTATION_PRICE, KIND, LABEL_POOL
from videotrain_operator.cluster.podview import pod_view
from videotrain_operator.kube.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BARE_NODE = {name: amount for name, amount in H200_NODE.items() if "nvidia" not in name and "rdma" not in name}
CLASS = "test/class"
CURATORS, TRAINERS = 3, 2


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    with GracefulPlane(tmp_path_factory.mktemp("pools-plane")) as plane:
        install_crds(plane)
        yield plane


class PoolBench(QueueBench):
    """Notes how every pod was seen last."""

    def __init__(self, *args):
        super().__init__(*args)
        self.last = {}
        self.views["Pod"].listeners.append(lambda body, deleted: self.last.update({body["metadata"]["uid"]: body}))

    def explain(self):
        return f"{self.status('pooled')}\n{self.operators.tail()}"


@pytest_asyncio.fixture
async def bench(plane, tmp_path):
    namespace = f"p-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(create_namespace, plane, namespace)
    bare = [f"{namespace}-bare-{number}" for number in range(CURATORS)]
    full = [f"{namespace}-full-{number}" for number in range(TRAINERS)]
    for names, capacity, kind in ((bare, BARE_NODE, "bare"), (full, H200_NODE, "full")):
        labels = {CLASS: f"{namespace}-{kind}"}
        await asyncio.to_thread(create_nodes, plane.api(), names, capacity=capacity, labels=labels)
    async with connect(str(plane.kubeconfig())) as client:
        bench = PoolBench(plane, client, namespace, tmp_path)
        del bench.views["Workload"]  # no queue here
        try:
            async with bench.served():
                yield bench
                await client.delete("Namespace", "", namespace)
        finally:
            await asyncio.to_thread(delete_nodes, plane, [*bare, *full])


def pooled_run(namespace):
    """Prices at which a second of a node, and of a GPU, costs a whole number of micros."""
    cpus = {
        "gpusPerNode": 0, "pricePerNodeHour": "1.80", "cpu": "16",
        "nodeSelector": {CLASS: f"{namespace}-bare"},
    }  # fmt: skip
    gpus = {"gpusPerNode": 8, "pricePerGpuHour": "3.60", "nodeSelector": {CLASS: f"{namespace}-full"}}
    train = train_stage(steps=100_000, nodes={"min": TRAINERS, "max": TRAINERS})
    train["train"]["parallel"] = {"microBatchesPerStep": 96}
    curate = {"name": "curate", "task": "curate", "curate": {}, "pool": cpus}
    curate["nodes"] = {"min": CURATORS, "max": CURATORS}
    data = {"videos": "s3://videotrain/raw", "latents": "s3://videotrain/latents"}
    return queued_run("pooled", namespace, stages=[curate, train], pool=gpus, dataset=data)


def seconds_held(body):
    """From the API server's word that it got its node to its container's end."""
    view = pod_view(body, {}, ["nvidia.com/gpu"])
    return int((view.finished_at - view.bound_at).total_seconds())


async def test_each_stage_has_the_pods_and_the_bill_of_its_pool(bench):
    await bench.client.create(pooled_run(bench.namespace), "test")
    await bench.is_running("pooled", CURATORS)
    assert bench.roster("pooled")["processesPerNode"] == 1
    for pod in bench.pods("pooled"):
        limits = pod["spec"]["containers"][0]["resources"].get("limits") or {}
        assert "nvidia.com/gpu" not in limits
        assert pod["metadata"]["labels"][LABEL_POOL] == "curate"
        assert pod["metadata"]["annotations"][ANNOTATION_PRICE] == "1.80 USD"
        assert "-bare-" in pod["spec"]["nodeName"]
    curators = {pod["metadata"]["uid"] for pod in bench.pods("pooled")}
    cost = bench.status("pooled")["cost"]
    assert (cost["ratePerHour"], cost["heldGpuMicroseconds"]) == ("5.40", 0)

    bench.agents.finish("pooled")
    await bench.waits_for(
        lambda: bench.status("pooled").get("stage") == "train" and bench.phase("pooled") == "Running", "it trains"
    )
    trainers = {pod["metadata"]["uid"] for pod in bench.pods("pooled")}
    assert not curators & trainers and len(trainers) == TRAINERS
    for pod in bench.pods("pooled"):
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert LABEL_POOL not in pod["metadata"]["labels"]
        assert "-full-" in pod["spec"]["nodeName"]
    assert bench.roster("pooled")["processesPerNode"] == 8
    assert bench.status("pooled")["cost"]["ratePerHour"] == "57.60"

    await bench.complete("pooled")
    await bench.waits_for(lambda: not bench.pods("pooled"), "every pod is gone")
    held = {kind: sum(seconds_held(bench.last[uid]) for uid in uids)
            for kind, uids in (("curate", curators), ("train", trainers))}  # fmt: skip
    due = {"curate": held["curate"] * 500, "train": held["train"] * 8 * 1000}

    def settled():
        stages = bench.status("pooled")["cost"].get("stages", [])
        return {stage["name"]: stage["totalMicros"] for stage in stages} == due and bench.status("pooled")["cost"]

    cost = await bench.waits_for(settled, f"the bill is {due}")
    assert len(bench.last.keys() - curators - trainers) == 0, "nothing else was made"
    assert cost["totalMicros"] == sum(due.values()) == sum(cost["microsByBucket"].values())
    assert cost["heldGpuMicroseconds"] == held["train"] * 8_000_000
    assert not cost["estimated"]
    await bench.client.delete(KIND, bench.namespace, "pooled")
