"""A pod that its list lacks is not gone: only a read by name tells, and what somebody changed of it is put back."""

from __future__ import annotations

from typing import Any

import pytest
from support.planner_lives import KEY, cluster_of, pass_seconds, running, told

from videotrain_api.schema import Json
from videotrain_api.vocabulary import LABEL_INDEX, LABEL_RUN, LABEL_RUN_UID
from videotrain_operator.cluster import missing as module
from videotrain_operator.reconcile import Following, Outcome, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster

GPUS = 2
LABELS = (LABEL_RUN, LABEL_RUN_UID, LABEL_INDEX)


def head_of(cluster: SimulatedCluster, name: str = "demo-w1") -> Json:
    found: Json = cluster.objects["Pod", name]["metadata"]
    return found


async def one_pass(cluster: SimulatedCluster, departed: tuple[Json, ...] = (), **more: Any) -> Outcome:
    return await reconcile(cluster, KEY, lambda: cluster.now, cluster, departed, **more)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("value", [None, "x"])
async def test_a_relabelled_pod_is_billed_and_its_labels_are_put_back(label: str, value: str | None) -> None:
    cluster = cluster_of(machines=3, steps=300)
    before = await running(cluster)
    held = dict(head_of(cluster)["labels"])
    if value is None:
        del head_of(cluster)["labels"][label]
    else:
        head_of(cluster)["labels"][label] = value
    after = await pass_seconds(cluster, 10)
    assert head_of(cluster)["labels"] == held
    assert after.cost.held_gpu_microseconds == before.cost.held_gpu_microseconds + 10 * 3 * GPUS * 1_000_000
    assert not after.cost.estimated
    assert after.generation == before.generation, "it goes on training"
    (message,) = told(cluster, "PodPutBack")
    assert "demo-w1" in message


async def test_a_pod_whose_owner_was_changed_gets_it_back() -> None:
    cluster = cluster_of(machines=3, steps=300)
    await running(cluster)
    owners = head_of(cluster)["ownerReferences"]
    del head_of(cluster)["ownerReferences"]
    await pass_seconds(cluster, 2)
    assert head_of(cluster)["ownerReferences"] == owners
    assert len(told(cluster, "PodPutBack")) == 1


async def test_a_watch_that_tells_of_a_relabelled_pod_as_deleted_ends_nothing() -> None:
    """A watch that selects by labels sees no difference, and tells of the pod as it was before."""
    cluster = cluster_of(machines=3, steps=300)
    before = await running(cluster)
    was = cluster.objects["Pod", "demo-w1"] | {"metadata": dict(head_of(cluster))}
    head_of(cluster)["labels"] = {}
    decided = (await one_pass(cluster, (was,))).plan
    assert decided.status.generation == before.generation
    assert decided.status.generations[-1].end_cause is None
    assert not decided.status.cost.estimated


async def test_a_pod_that_the_server_does_not_know_is_gone_and_bounded_by_its_last_look() -> None:
    cluster = cluster_of(machines=3, steps=300)
    before = await running(cluster)
    seen_at = cluster.now
    cluster.force_delete("demo-w1")
    cluster.tick()
    status = (await one_pass(cluster)).plan.status
    assert status.generations[-1].end_cause == "infrastructure"
    assert status.cost.estimated
    assert status.cost.held_gpu_microseconds == before.cost.held_gpu_microseconds + 2 * GPUS * 1_000_000
    assert before.observed_at == seen_at


class StaleList(SimulatedCluster):
    """Its list of pods lacks some that are there."""

    hidden: frozenset[str] = frozenset()
    reads = 0

    async def list(self, kind: str, namespace: str, labels: Any = None) -> list[Json]:
        found = await super().list(kind, namespace, labels)
        return [body for body in found if body["metadata"]["name"] not in self.hidden]

    async def read(self, kind: str, namespace: str, name: str) -> Json:
        self.reads += 1
        return await super().read(kind, namespace, name)


def stale_list(**spec: Any) -> StaleList:
    cluster = cluster_of(machines=3, steps=300, **spec)
    cluster.__class__ = StaleList
    assert isinstance(cluster, StaleList)
    return cluster


async def test_a_list_that_lacks_pods_that_are_there_changes_nothing() -> None:
    cluster = stale_list()
    before = await running(cluster)
    cluster.hidden = frozenset({"demo-w0", "demo-w1", "demo-w2"})
    after = await pass_seconds(cluster, 10)
    assert after.generation == before.generation and after.phase == "Running"
    assert after.cost.held_gpu_microseconds == before.cost.held_gpu_microseconds + 10 * 3 * GPUS * 1_000_000
    assert not told(cluster, "PodPutBack"), "nothing is wrong with them"


async def test_more_pods_than_are_read_in_a_pass_are_neither_gone_nor_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READS_PER_PASS", 1)
    cluster = stale_list()
    before = await running(cluster)
    cluster.hidden = frozenset({"demo-w0", "demo-w1", "demo-w2"})
    cluster.reads = 0
    cluster.tick()
    outcome = await one_pass(cluster)
    assert cluster.reads == 1
    assert outcome.plan.status.generations[-1].end_cause is None
    assert not [item for item in outcome.plan.apply if item["kind"] == "Pod"]
    assert outcome.plan.status.cost.estimated, "until they are seen again"
    assert outcome.requeue_seconds is not None and outcome.requeue_seconds <= 1
    cluster.hidden = frozenset()
    after = await pass_seconds(cluster, 5)
    assert after.cost.held_gpu_microseconds == before.cost.held_gpu_microseconds + 6 * 3 * GPUS * 1_000_000
    assert not after.cost.estimated and after.generation == before.generation


async def test_pods_that_are_really_gone_are_found_so_one_pass_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READS_PER_PASS", 1)
    cluster = cluster_of(machines=3, steps=300)
    before = await running(cluster)
    for name in ("demo-w0", "demo-w1", "demo-w2"):
        cluster.force_delete(name)
    status = await pass_seconds(cluster, 20)
    assert status.generation > before.generation and status.phase == "Running"
    assert status.cost.estimated


async def test_a_pod_that_finished_is_not_read_again() -> None:
    cluster = stale_list()
    await running(cluster)
    cluster.edit(suspend=True)
    cluster.reads = 0
    for _ in range(30):
        outcome = await one_pass(cluster, tuple(cluster.departed.values()))
        cluster.departed.clear()
        cluster.tick()
    assert outcome.plan.status.phase == "Suspended" and not cluster.pods()
    assert cluster.reads == 0


async def test_a_pod_that_was_made_and_lost_while_nobody_looked_makes_the_bill_an_estimate() -> None:
    cluster = cluster_of(machines=3)
    await one_pass(cluster)
    noted = cluster.now
    for _ in range(5):
        cluster.tick()
    cluster.force_delete("demo-w1")
    cluster.departed.clear()
    outcome = await one_pass(cluster, following=Following(since=cluster.now))
    assert outcome.plan.status.cost.estimated
    same = await one_pass(cluster_of(machines=3), following=Following(since=noted))
    assert same.plan.status.cost is None or not same.plan.status.cost.estimated


async def test_the_price_of_a_pod_is_that_of_its_making_whatever_is_written_on_it() -> None:
    cluster = cluster_of(machines=3)
    await one_pass(cluster)
    cluster.tick()
    head_of(cluster)["annotations"]["videotrain.dev/price"] = "0 USD"
    status = await pass_seconds(cluster, 10)
    assert status.cost.total_micros == status.cost.held_gpu_microseconds * 3_600_000 // 3_600_000_000
