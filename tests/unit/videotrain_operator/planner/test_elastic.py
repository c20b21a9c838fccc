"""A run meets what people, machines and queues do to it; each test says what it must come to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from support.planner_builders import train_stage
from support.planner_lives import KEY, cluster_of, condition, pass_seconds, running, told

from videotrain_api.records import Roster
from videotrain_operator.planner.report import WATCH_SECONDS
from videotrain_operator.reconcile import Following, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import settle

Deed = Callable[[SimulatedCluster], None]


# Faults: what they count as, what is lost, and what is said.


def leave_and_die(cluster: SimulatedCluster) -> None:
    cluster.delete_pod("demo-w1")
    cluster.finish_pod("demo-w1", 137)


FAULTS: dict[str, tuple[Deed, str, str]] = {
    "exit 1": (lambda c: c.finish_pod("demo-w1", 1), "application", "PodFailed"),
    "exit 137": (lambda c: c.finish_pod("demo-w1", 137), "infrastructure", "PodFailed"),
    "exit 143": (lambda c: c.finish_pod("demo-w1", 143), "preemption", "PodFailed"),
    "out of memory": (lambda c: c.finish_pod("demo-w1", 137, "OOMKilled"), "application", "PodFailed"),
    "evicted by the kubelet": (lambda c: c.finish_pod("demo-w1", 137, "Evicted"), "infrastructure", "PodFailed"),
    "leader killed": (lambda c: c.finish_pod("demo-w0", 137), "infrastructure", "PodFailed"),
    "node not ready": (lambda c: c.lose_node("node-1"), "infrastructure", "NodeLost"),
    "node deleted": (lambda c: c.nodes.pop("node-1"), "infrastructure", "NodeLost"),
    "node drained": (lambda c: c.reclaim("node-1"), "preemption", "Preempted"),
    "pod deleted by hand": (lambda c: c.delete_pod("demo-w1"), "preemption", "Preempted"),
    "deleted pod killed": (leave_and_die, "preemption", "PodFailed"),
    "pod deleted by force": (lambda c: c.force_delete("demo-w1"), "infrastructure", "PodFailed"),
    "worker fails": (lambda c: c.fail_worker("demo-w1", 1), "application", "WorkerFailed"),
    "steps stand still": (lambda c: c.hang(), "hang", "Hang"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_counted_once_as_what_it_is_and_the_run_goes_on(name: str) -> None:
    deed, cause, reason = FAULTS[name]
    cluster = cluster_of(machines=4)
    before = await running(cluster)
    deed(cluster)
    status = await pass_seconds(cluster, 25)
    counts = status.restarts.model_dump()
    assert counts == dict.fromkeys(counts, 0) | {cause: 1}
    assert status.phase == "Running"
    assert status.generation > before.generation
    assert len(told(cluster, reason)) >= 1
    (recovered,) = told(cluster, "Recovered")[:1]
    assert "GPU-minutes" in recovered and "USD" in recovered and "from step" in recovered
    assert condition(status, "Restarting").status == "False"
    assert condition(status, "Restarting").message == told(cluster, "Recovered")[-1]
    assert status.outage is None


async def test_a_run_that_was_restarted_can_still_fail_at_its_deadline() -> None:
    cluster = cluster_of(machines=4, activeDeadlineSeconds=600)
    await running(cluster)
    cluster.finish_pod("demo-w1", 137)
    await pass_seconds(cluster, 25)
    cluster.now += timedelta(seconds=600)
    status = await pass_seconds(cluster, 5)
    assert condition(status, "Failed").reason == "DeadlineExceeded"
    assert (status.phase, condition(status, "Restarting").status) == ("Failed", "False")


@pytest.mark.parametrize("name", ["node drained", "pod deleted by hand"])
async def test_nothing_is_lost_when_a_pod_leaves_in_good_order(name: str) -> None:
    cluster = cluster_of(machines=4)
    await running(cluster)
    FAULTS[name][0](cluster)
    await pass_seconds(cluster, 20)
    assert "0 steps were lost" in told(cluster, "Recovered")[0]


@pytest.mark.parametrize("name", ["node not ready", "worker fails"])
async def test_what_an_outage_cost_is_what_the_ledger_says(name: str) -> None:
    cluster = cluster_of(machines=3)
    before = await running(cluster)
    cluster.now += timedelta(seconds=2)
    FAULTS[name][0](cluster)
    status = await pass_seconds(cluster, 8)
    assert before.cost is not None
    assert status.cost is not None
    waste = ("lost", "stalled", "draining", "restarting")
    now, then = status.cost.micros_by_bucket, before.cost.micros_by_bucket
    micros = sum(now[b] for b in waste) - sum(then[b] for b in waste)
    assert micros > 0
    assert f"{micros / 1e6:g} USD" in told(cluster, "Recovered")[0]


async def test_a_replacement_is_not_taken_for_the_member_that_died() -> None:
    """The operator dies after it created the replacement of a one-pod world and before it wrote the status."""
    cluster = one_node()
    before = await running(cluster)
    cluster.force_delete("demo-w0")
    await reconcile(cluster, KEY, lambda: cluster.now, cluster)
    assert ("Pod", "demo-w0") not in cluster.objects, "the end of the world comes on record first"
    status = await pass_seconds(cluster, 15)
    assert status.generation == before.generation + 1
    assert status.phase == "Running"


def one_node() -> SimulatedCluster:
    return cluster_of(machines=1, nodes={"min": 1, "max": 1})


async def test_one_workers_success_is_not_the_runs() -> None:
    cluster = cluster_of(machines=2, steps=14, nodes={"min": 2, "max": 2})
    while not any(w.state == "succeeded" for w in cluster.worlds.values()):
        await settle(cluster)
        cluster.tick()
    cluster.finish_pod("demo-w1", 1)
    status = (await settle(cluster)).plan.status
    assert status.phase != "Succeeded"
    assert status.restarts.application == 1


# Node trust.


async def test_nothing_is_done_about_lost_nodes_while_nodes_are_not_trusted() -> None:
    cluster = cluster_of()
    before = await running(cluster)
    cluster.nodes_untrusted = "3 of 4 nodes in use are lost at the same time"
    cluster.lose_node("node-1")
    cluster.force_delete("demo-w2")
    outcome = await settle(cluster)
    status = outcome.plan.status
    assert status.generation == before.generation
    assert status.restarts == before.restarts
    assert not [key for key in cluster.objects if key == ("Pod", "demo-w2")], "a member that may live keeps its name"
    assert condition(status, "NodesTrusted").status == "False"
    assert cluster.nodes_untrusted in condition(status, "NodesTrusted").message
    assert len(told(cluster, "NodesUntrusted")) == 1
    cluster.nodes_untrusted = ""
    status = await pass_seconds(cluster, 15)
    assert status.generation > before.generation
    assert condition(status, "NodesTrusted").status == "True"


async def test_a_container_that_ended_is_believed_even_then() -> None:
    cluster = cluster_of(machines=4)
    before = await running(cluster)
    cluster.nodes_untrusted = "the API server has told nothing about nodes for 120 s"
    cluster.lose_node("node-1")
    cluster.finish_pod("demo-w2", 137)
    status = await pass_seconds(cluster, 12)
    assert status.generation > before.generation
    assert status.restarts.infrastructure == 1
    assert "demo-w1" not in status.generations[-1].members, "a pod of an untrusted node is no member of a new world"
    assert ("Pod", "demo-w1") in cluster.objects


# What hands do.


async def test_an_emptied_status_is_found_again() -> None:
    stages = [train_stage("first", 10), train_stage("second", 60)]
    cluster = cluster_of(stages=stages)
    await running(cluster, 20)
    cluster.finish_pod("demo-w1", 137)
    before = await pass_seconds(cluster, 25)
    assert before.stage == "second"
    cluster.wipe_status()
    pods = {key: body["metadata"]["uid"] for key, body in cluster.objects.items() if key[0] == "Pod"}
    after = await pass_seconds(cluster, 4)
    assert (after.generation, after.stage) == (before.generation, "second")
    assert after.restarts == before.restarts
    assert pods == {key: body["metadata"]["uid"] for key, body in cluster.objects.items() if key[0] == "Pod"}
    assert after.step > before.step
    assert len(told(cluster, "StatusLost")) == 1


async def test_the_pods_alone_tell_which_stages_are_complete() -> None:
    cluster = cluster_of(stages=[train_stage("first", 10), train_stage("second", 60)])
    await running(cluster, 24)
    cluster.drop("ConfigMap", "ledger")
    cluster.wipe_status()
    status = await pass_seconds(cluster, 3)
    assert [(s.name, s.state) for s in status.stages] == [("first", "Succeeded"), ("second", "Running")]


async def test_a_finished_run_does_not_start_again_when_its_status_is_emptied() -> None:
    cluster = cluster_of(steps=8)
    assert (await pass_seconds(cluster, 30)).phase == "Succeeded"
    cluster.wipe_status()
    status = await pass_seconds(cluster, 3)
    assert status.phase == "Succeeded"
    assert not [key for key in cluster.objects if key[0] == "Pod"]


async def test_a_deleted_ledger_is_made_again_from_the_status() -> None:
    cluster = cluster_of()
    before = await running(cluster)
    cluster.drop("ConfigMap", "ledger")
    after = (await settle(cluster)).plan.status
    assert before.cost is not None
    assert after.cost is not None
    assert after.cost.held_gpu_microseconds == before.cost.held_gpu_microseconds
    assert after.cost.total_micros == before.cost.total_micros
    assert after.cost.estimated
    assert len(told(cluster, "LedgerRebuilt")) == 1
    status = await pass_seconds(cluster, 70)
    assert status.phase == "Succeeded"
    assert status.cost is not None
    assert status.cost.held_gpu_microseconds == sum(status.cost.gpu_microseconds_by_bucket.values())
    assert status.cost.held_gpu_microseconds > before.cost.held_gpu_microseconds


async def test_a_ledger_that_is_made_again_bills_no_second_twice_although_nothing_was_heard_of_pods() -> None:
    """On an idle watch pods were last seen up to a minute before the time that the totals in the status count to."""
    cluster = cluster_of()
    await running(cluster)
    quiet = Following(unheard_seconds=9.0)
    outcome = await reconcile(cluster, KEY, lambda: cluster.now, cluster, following=quiet)
    before = outcome.plan.status.cost
    cluster.drop("ConfigMap", "ledger")
    after = (await reconcile(cluster, KEY, lambda: cluster.now, cluster, following=quiet)).plan.status.cost
    assert before is not None and after is not None
    assert after.held_gpu_microseconds == before.held_gpu_microseconds
    assert after.total_micros == before.total_micros


async def test_a_ledger_that_is_deleted_while_no_pod_is_held_is_made_again_once() -> None:
    cluster = cluster_of()
    await running(cluster)
    cluster.edit(suspend=True)
    before = await pass_seconds(cluster, 15)
    assert before.phase == "Suspended" and before.cost is not None
    cluster.drop("ConfigMap", "ledger")
    after = await pass_seconds(cluster, 5)
    assert [key for key in cluster.objects if key[0] == "ConfigMap" and "ledger" in key[1]]
    assert len(told(cluster, "LedgerRebuilt")) == 1
    assert after.cost is not None
    assert after.cost.total_micros == before.cost.total_micros


async def test_workers_that_save_are_looked_at_again_although_somebody_deletes_the_roster() -> None:
    """Nothing else would wake the run when they are done, and its pods would be held until the next resync."""
    cluster = cluster_of()
    await running(cluster)
    cluster.edit(suspend=True)
    await pass_seconds(cluster, 1)
    cluster.drop("ConfigMap", "roster")
    outcome = await reconcile(cluster, KEY, lambda: cluster.now, cluster)
    assert any(pod.running for pod in outcome.observed.pods) and outcome.observed.roster is None
    assert outcome.requeue_seconds == WATCH_SECONDS


@pytest.mark.parametrize("text", [None, "", "{", '{"generation": 1}'])
async def test_a_roster_that_somebody_spoils_is_written_again(text: str | None) -> None:
    cluster = cluster_of()
    before = await running(cluster)
    written = roster_of(cluster)
    cluster.spoil_roster(text)
    after = await pass_seconds(cluster, 2)
    found = roster_of(cluster)
    assert found.saved_step >= written.saved_step
    assert found == written.model_copy(update={"saved_step": found.saved_step})
    assert after.generation == before.generation


async def test_a_pod_outside_the_next_world_hears_that_its_own_is_over() -> None:
    """It would train on if nobody told it; here the roster that tells it is removed before it is read."""
    cluster = cluster_of()
    await running(cluster)
    cluster.edit(nodes={"min": 1, "max": 2})
    await reconcile(cluster, KEY, lambda: cluster.now, cluster)
    cluster.spoil_roster(None)
    await pass_seconds(cluster, 2)
    left = next(
        agent for agent in cluster.agents.values() if agent.uid not in cluster.worlds[2].roster.model_dump_json()
    )
    assert left.roster is not None and left.roster.generation == 2
    assert cluster.worlds[1].ended is not None


async def test_another_runs_roster_is_not_obeyed() -> None:
    cluster = cluster_of()
    before = await running(cluster)
    foreign = roster_of(cluster).model_copy(update={"run_uid": "other", "generation": 99})
    cluster.spoil_roster(foreign.model_dump_json(by_alias=True))
    assert (await pass_seconds(cluster, 2)).generation == before.generation


def roster_of(cluster: SimulatedCluster) -> Roster:
    return Roster.model_validate_json(cluster.objects["ConfigMap", "demo-roster"]["data"]["roster.json"])


# The scheduler and the kubelet.


async def test_pods_without_a_node_are_told_once_and_the_others_train() -> None:
    cluster = cluster_of(machines=2)
    status = await pass_seconds(cluster, 50)
    assert status.phase == "Running"
    assert status.nodes.current == 2
    scheduled = condition(status, "Scheduled")
    assert scheduled.status == "True"
    assert "0/2 nodes fit" in scheduled.message and "demo-w2" in scheduled.message
    assert len(told(cluster, "Unschedulable")) <= 2


async def test_a_run_that_finds_no_nodes_asks_for_no_look() -> None:
    cluster = cluster_of(machines=0)
    await pass_seconds(cluster, 2)
    outcome = await settle(cluster)
    assert condition(outcome.plan.status, "Scheduled").reason == "Unschedulable"
    assert outcome.requeue_seconds is None


async def test_image_trouble_is_shown_and_left_to_the_start_deadline() -> None:
    cluster = cluster_of(machines=0, startDeadlineSeconds=60)
    await settle(cluster)
    for second, reason in enumerate(["ErrImagePull", "ImagePullBackOff"] * 10):
        for body in cluster.pods():
            waiting = {"reason": reason, "message": f"try {second}"}
            body["status"] = {
                "phase": "Pending",
                "containerStatuses": [{"name": "worker", "state": {"waiting": waiting}}],
            }
        status = (await settle(cluster)).plan.status
        cluster.now += timedelta(seconds=1)
    assert condition(status, "Scheduled").reason == "ImagePullBackOff"
    assert len(told(cluster, "ImagePullBackOff")) == 1
    assert len({str(c) for c in status.conditions if c.type == "Scheduled"}) == 1
    assert "try 0" in condition(status, "Scheduled").message, "the same trouble is not told in new words"
    cluster.now += timedelta(seconds=60)
    await settle(cluster)
    cluster.now += timedelta(seconds=1)
    status = (await settle(cluster)).plan.status
    assert condition(status, "Failed").reason == "StartDeadlineExceeded"


async def test_a_suspicion_never_stops_a_run() -> None:
    cluster = one_node()
    await running(cluster)
    cluster.fail_worker("demo-w0", 84)
    status = await pass_seconds(cluster, 20)
    assert status.phase == "Running"
    assert status.suspect_nodes == []
    assert told(cluster, "NodesForgiven")


async def test_a_bad_node_is_avoided_while_there_are_others() -> None:
    cluster = cluster_of(machines=3, nodes={"min": 1, "max": 2})
    await running(cluster)
    cluster.fail_worker("demo-w1", 84)
    status = await pass_seconds(cluster, 30)
    assert [s.name for s in status.suspect_nodes] == ["node-1"]
    assert {b["spec"].get("nodeName") for b in cluster.pods()} == {"node-0", "node-2"}
