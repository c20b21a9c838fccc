"""Whatever happens to a run: the planner comes to rest, keeps one world at a time, and every GPU-second is billed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.at_length import cases
from support.known_reasons import unknown_in
from support.planner_builders import manifest, run_of, train_stage

from videotrain_api.render.network import NetworkRules
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import RestartLimits
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.cluster.observe import observe
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.plan import plan
from videotrain_operator.reconcile import RunKey, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash
from videotrain_operator.simulation.world import Pace

KEY = RunKey(namespace="default", name="demo")
NODES = 4
LIMITS = RestartLimits()
Event = tuple[str, int]
EVENTS = (
    "lose-node",
    "restore-node",
    "fail-worker",
    "fail-config",
    "hang",
    "silence",
    "answer",
    "drain-node",
    "delete-pod",
    "kill-pod",
    "suspend",
    "resume",
    "fewer",
    "more",
    "delete-config",
    "delete-ledger",
    "force-delete",
    "evict-pod",
    "terminate-pod",
    "remove-roster",
    "spoil-roster",
    "wipe-status",
    "distrust-nodes",
    "trust-nodes",
    "crash-before",
    "crash-after",
    "edit-steps",
)
BY_HAND = {
    "delete-config": ("ConfigMap", "config"),
    "delete-policy": ("NetworkPolicy", "workers"),
    "delete-ledger": ("ConfigMap", "ledger"),
}
BOTH_COPIES = {"wipe-status", "delete-ledger"}
"""Each of the two objects can be made again from the other one."""
EDIT_OF_WHAT_IS_GONE = {"edit-steps", "delete-config"}
"""An edit that nobody has seen, and nothing to compare it with: the run says so, and waits for people."""


def _is_seen(script: list[tuple[int, str, int]]) -> bool:
    return not any({e for at, e, _ in script if at == when} >= EDIT_OF_WHAT_IS_GONE for when, _, _ in script)


EVENT = st.tuples(st.integers(0, 60), st.sampled_from(EVENTS), st.integers(0, NODES - 1))
SCRIPTS = st.lists(EVENT, max_size=8).filter(_is_seen)


def small_run(**spec: Any) -> SimulatedCluster:
    policy = {"hangSeconds": 8, "startSeconds": 20, "graceSeconds": 3}
    stages = [train_stage("first", 25), train_stage("second", 10, nodes={"min": 1, "max": 2})]
    base: dict[str, Any] = {"stages": stages, "failurePolicy": policy, "nodes": {"min": 1, "max": 3}}
    cluster = SimulatedCluster(manifest(**(base | spec)), nodes=NODES, pace=Pace(every_steps=5))
    cluster.rules = ClusterRules(network=NetworkRules())
    return cluster


def happen(cluster: SimulatedCluster, event: str, index: int) -> None:
    """One thing that people, machines or bad luck do."""
    pods = [b for b in cluster.pods() if b["status"]["phase"] == "Running"]
    pod = pods[index % len(pods)]["metadata"] if pods else None
    node = f"node-{index}"
    if event in ("lose-node", "restore-node"):
        cluster.nodes[node] = event == "restore-node"
    elif event == "drain-node":
        cluster.reclaim(node)
    elif event in ("fail-worker", "fail-config") and pod:
        cluster.fail_worker(pod["name"], 64 if event == "fail-config" else 1)
    elif event == "hang":
        cluster.hang()
    elif event in ("silence", "answer") and pod:
        cluster.agents[pod["uid"]].silent = event == "silence"
    elif event == "delete-pod" and pod:
        cluster.objects["Pod", pod["name"]]["metadata"].setdefault("deletionTimestamp", "2026-01-01T12:00:00Z")
    elif event == "kill-pod" and pod:
        cluster.finish_pod(pod["name"], 137, "OOMKilled")
    elif event in ("suspend", "resume"):
        cluster.edit(suspend=event == "suspend")
    elif event in ("fewer", "more"):
        cluster.edit(nodes={"min": 1, "max": 2 if event == "fewer" else 4})
    elif event == "edit-steps":
        edit_steps(cluster, index)
    elif event in BY_HAND:
        cluster.drop(*BY_HAND[event])
    elif event == "force-delete" and pod:
        cluster.force_delete(pod["name"])
    elif event in ("evict-pod", "terminate-pod") and pod:
        cluster.finish_pod(pod["name"], 137 if event == "evict-pod" else 143, "Evicted" if event == "evict-pod" else "")
    elif event in ("remove-roster", "spoil-roster"):
        cluster.spoil_roster('{"generation": -1}' if event == "spoil-roster" else None)
    elif event == "wipe-status":
        cluster.wipe_status()
    elif event in ("distrust-nodes", "trust-nodes"):
        cluster.nodes_untrusted = "3 of 4 nodes in use are lost" if event == "distrust-nodes" else ""
    elif event.startswith("crash"):
        cluster.crash_at, cluster.crash_after = cluster.writes + 1 + index, event == "crash-after"


def edit_steps(cluster: SimulatedCluster, more: int) -> None:
    """More steps of every stage that is not complete, where the API server lets stages be edited."""
    status = RunStatus.from_wire(cluster.run.get("status") or {})
    if status.phase != "Suspended" or not cluster.run["spec"].get("suspend"):
        return
    done = {stage.name for stage in status.stages if stage.state == "Succeeded"}
    stages = json.loads(json.dumps(cluster.run["spec"]["stages"]))
    for stage in stages:
        stage["train"]["steps"] += 0 if stage["name"] in done else more
    cluster.edit(stages=stages)


async def settle(cluster: SimulatedCluster) -> RunStatus:
    for _ in range(12):
        try:
            outcome = await reconcile(
                cluster,
                KEY,
                lambda: cluster.now,
                cluster,
                tuple(cluster.departed.values()),
                nodes_untrusted=cluster.nodes_untrusted,
                rules=cluster.rules,
            )
        except OperatorCrash:
            cluster.departed.clear()  # what its watch had seen
            continue
        except Conflict:
            continue
        cluster.departed.clear()
        if outcome.requeue_seconds != 0 and not outcome.plan.apply and not outcome.plan.delete:
            return outcome.plan.status
    raise AssertionError("the planner does not come to rest")


RESTING = ("Succeeded", "Failed", "Suspended", "Suspending")
"""Phases in which no pod is made, so nobody makes its policy again."""


async def check_rest(cluster: SimulatedCluster, *, quiet: bool) -> None:
    """What holds after every pass that did not ask for another at once."""
    body, observed = await observe(cluster, "default", "demo", cluster)
    observed = replace(observed, nodes_untrusted=cluster.nodes_untrusted)
    run = run_of(body)
    before = (run.model_dump_json(), repr(observed))
    decided = plan(run, observed, cluster.now, cluster.rules)
    assert (run.model_dump_json(), repr(observed)) == before, "plan changed its input"
    assert decided == plan(run, observed, cluster.now, cluster.rules), "plan is not a function of its input"
    assert unknown_in(decided) == []
    assert observed.network_policy is not None or not observed.pods or decided.status.phase in RESTING
    if quiet:
        assert (decided.apply, decided.delete, decided.events) == ((), (), ())
        assert decided.status.to_wire() == body["status"]
    status = decided.status
    assert len([g for g in status.generations if g.end_cause is None]) <= 1
    numbers = [g.number for g in status.generations]
    assert numbers == sorted(set(numbers)) and (not numbers or numbers[-1] <= status.generation)
    cost = status.cost
    assert cost is not None
    assert sum(cost.gpu_microseconds_by_bucket.values()) == cost.held_gpu_microseconds
    assert sum(cost.micros_by_bucket.values()) == cost.total_micros
    for cause, limit in LIMITS.model_dump().items():
        assert getattr(status.restarts_in_stage, cause) <= limit


def check_history(cluster: SimulatedCluster, before: RunStatus | None, now: RunStatus) -> None:
    """What never goes back, whatever people do to the objects."""
    if before is None:
        return
    assert now.generation >= before.generation
    for cause in LIMITS.model_dump():
        assert getattr(now.restarts, cause) >= getattr(before.restarts, cause), f"restarts by {cause} went down"
    done = [s.name for s in before.stages if s.state == "Succeeded"]
    assert [s.name for s in now.stages if s.state == "Succeeded"][: len(done)] == done
    if before.cost is not None and now.cost is not None:
        assert now.cost.held_gpu_microseconds >= before.cost.held_gpu_microseconds


def _over(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


async def live(cluster: SimulatedCluster, script: list[tuple[int, str, int]]) -> RunStatus:
    status: RunStatus | None = None
    for second in range(400):
        if second == 70:
            cluster.nodes = dict.fromkeys(cluster.nodes, True)
            cluster.draining.clear()
            cluster.crash_at, cluster.nodes_untrusted = None, ""
            for sim in cluster.agents.values():
                sim.silent = False
            cluster.edit(suspend=False)
        for when, event, index in script:
            if when == second:
                happen(cluster, event, index)
        if {event for when, event, _ in script if when == second} >= BOTH_COPIES:
            status = None  # nothing holds the history any more
        before, status = status, await settle(cluster)
        check_history(cluster, before, status)
        await check_rest(cluster, quiet=cluster.crash_at is None)
        assert len(cluster.alive_generations[-1]) <= 1 if cluster.alive_generations else True
        # Pods of a failed run that have ended stay for their logs, and hold no node.
        left = [pod for pod in cluster.pods() if status.phase == "Succeeded" or not _over(pod)]
        if status.phase in ("Succeeded", "Failed") and not left:
            return status
        cluster.tick()
    raise AssertionError(f"the run does not end: {status.phase} {status.progress} {status.conditions}")


@given(SCRIPTS)
@example([(1, "drain-node", 0), (3, "delete-ledger", 0)])
@example([(2, "lose-node", 0), (10, "force-delete", 2)])
@example([(0, "lose-node", 0), (5, "force-delete", 2)])
@example([(0, "lose-node", 2), (0, "fewer", 0), (40, "fail-config", 2)])
@example([(10, "suspend", 0), (20, "edit-steps", 3), (20, "crash-after", 0), (30, "lose-node", 1)])
@example([(10, "suspend", 0), (20, "edit-steps", 3), (21, "wipe-status", 0)])
@example([(10, "suspend", 0), (20, "edit-steps", 3), (20, "wipe-status", 0), (20, "resume", 0)])
@settings(max_examples=cases(5, 15))
@pytest.mark.slow
async def test_a_run_comes_to_its_end_whatever_happens(script: list[tuple[int, str, int]]) -> None:
    cluster = small_run()
    status = await live(cluster, script)
    if not any(event in ("fail-worker", "fail-config", "kill-pod", "hang", "evict-pod") for _, event, _ in script):
        assert status.phase == "Succeeded", status.conditions
        wanted = [stage["train"]["steps"] for stage in cluster.run["spec"]["stages"]]
        assert [stage.step for stage in status.stages] == wanted


@given(st.integers(60, 400))
@settings(max_examples=cases(4, 10))
async def test_spending_never_passes_the_budget_by_more_than_one_checkpoint_interval(cents: int) -> None:
    limit = f"{cents / 1000:.3f}"
    cluster = small_run(budget={"maxCost": limit}, pool={"gpusPerNode": 2, "pricePerGpuHour": "3.60"})
    for _ in range(150):
        status = await settle(cluster)
        cluster.tick()
    cost = status.cost
    assert cost is not None
    # Six GPUs at 0.001 a second; five steps of a second between checkpoints, and at most ten seconds of draining.
    assert cost.total_micros <= cents * 1000 + 6 * (5 + 10) * 1000
    if status.phase == "Suspended":
        raised = json.loads(json.dumps({"maxCost": "50.00"}))
        cluster.edit(budget=raised)
        for _ in range(150):
            status = await settle(cluster)
            cluster.tick()
    assert status.phase == "Succeeded"
