"""A run is looked at and written no more often than needed, and goes without a trace."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from support.planner_lives import cluster_of, condition, pass_seconds, running

from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import LEDGER_KEY
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.cluster.observe import observe
from videotrain_operator.cluster.podview import parse_time
from videotrain_operator.planner.plan import plan
from videotrain_operator.planner.report import LONGEST_LOOK_SECONDS
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import settle

# Looks and writes.


async def test_an_unchanged_world_changes_nothing_but_numbers() -> None:
    cluster = cluster_of()
    await running(cluster)
    cluster.nodes_untrusted = ""
    first = (await settle(cluster)).plan.status.to_wire()
    writes = cluster.writes
    cluster.now += timedelta(seconds=3)
    second = (await settle(cluster)).plan.status.to_wire()
    moved = {key for key in first if first[key] != second.get(key)}
    assert moved <= {"cost", "columns", "observedAt"}
    assert cluster.writes - writes <= 1, "nothing but the status is written"


async def test_a_calm_run_is_looked_at_rarely_and_a_hang_in_time() -> None:
    cluster = cluster_of(failurePolicy={"hangSeconds": 600, "startSeconds": 30, "graceSeconds": 3})
    await running(cluster)
    assert (await settle(cluster)).requeue_seconds == LONGEST_LOOK_SECONDS
    cluster.hang()
    cluster.now += timedelta(seconds=590)
    look = (await settle(cluster)).requeue_seconds
    assert look is not None
    assert look <= 10


async def test_a_suspended_run_asks_for_no_look() -> None:
    cluster = cluster_of()
    await running(cluster)
    cluster.edit(suspend=True)
    await pass_seconds(cluster, 10)
    outcome = await settle(cluster)
    assert outcome.plan.status.phase == "Suspended"
    assert outcome.requeue_seconds is None
    before = outcome.plan.status.to_wire()
    cluster.now += timedelta(hours=3)
    assert (await settle(cluster)).plan.status.to_wire() == before


async def test_pods_that_are_bound_one_after_another_make_one_ledger_write() -> None:
    cluster = cluster_of(machines=0, elasticity={"waitForMaxSeconds": 30})
    versions = {}
    for second in range(8):
        if second < 3:
            cluster.nodes[f"node-{second}"] = True
        await settle(cluster)
        ledger = cluster.objects["ConfigMap", "demo-ledger"]
        document = json.loads(ledger["data"][LEDGER_KEY])
        versions[ledger["metadata"]["resourceVersion"]] = (document["awaited"], len(document["pods"]))
        cluster.tick()
    noted, bound = versions.values()
    assert ([span[:2] for span in noted[0]], noted[1]) == ([[0, 2]], 0), "before any pod is made"
    assert bound == ([], 3)


async def test_the_write_of_a_new_roster_is_fenced() -> None:
    """Of two operators that both believe to lead, one gets no further than its roster."""
    cluster, rosters = cluster_of(), []
    while not rosters:
        await settle(cluster)
        cluster.tick()
        run, observed = await observe(cluster, "default", "demo", cluster)
        decided = plan(VideoTrainingRun.from_wire(run), observed, cluster.now)
        rosters = [item for item in decided.apply if item.get("data", {}).get("roster.json")]
    assert len(rosters) == 1
    await settle(cluster)
    with pytest.raises(Conflict):
        await cluster.apply(rosters[0])


async def test_what_is_spent_does_not_reword_the_budgets_condition() -> None:
    cluster = cluster_of(budget={"maxCost": "0.02", "action": "Shrink"})
    said = set()
    for _ in range(30):
        status = (await settle(cluster)).plan.status
        budget = condition(status, "BudgetOK")
        said |= {budget.message} if budget.status == "False" else set()
        cluster.tick()
    assert len(said) == 1


async def test_a_roster_names_only_pods_that_run() -> None:
    cluster = cluster_of()
    cluster.edit(suspend=True)
    await pass_seconds(cluster, 3)
    cluster.edit(suspend=False)
    status = await pass_seconds(cluster, 10)
    for world in cluster.worlds.values():
        assert all(member.address for member in world.roster.members)
    assert status.generations[-1].created_at >= max(starts_of(cluster))


def starts_of(cluster: SimulatedCluster) -> list[Any]:
    states = [b["status"]["containerStatuses"][0]["state"] for b in cluster.pods()]
    return [parse_time(state["running"]["startedAt"]) for state in states]


# The end.


async def test_the_ttl_is_asked_for_to_the_second_and_nothing_is_made_again() -> None:
    cluster = cluster_of(steps=8, ttlSecondsAfterFinished=100)
    await pass_seconds(cluster, 30)
    outcome = await settle(cluster)
    finished = outcome.plan.status.completion_time
    assert finished is not None
    left = (finished + timedelta(seconds=100) - cluster.now).total_seconds()
    assert outcome.requeue_seconds == left
    assert outcome.plan.apply == ()
    cluster.now += timedelta(seconds=left)
    assert (await settle(cluster)).requeue_seconds == 1, "one look at the clock deletes nothing"
    cluster.now += timedelta(seconds=1)
    await settle(cluster)
    assert not [key for key in cluster.objects if key[0] == "VideoTrainingRun"]


@pytest.mark.parametrize("seconds", [1, 14])
async def test_a_run_that_is_being_deleted_only_lets_go(seconds: int) -> None:
    cluster = cluster_of()
    await pass_seconds(cluster, seconds)
    cluster.run["metadata"]["deletionTimestamp"] = rfc3339(cluster.now)
    cluster.drop("ConfigMap", "config")
    cluster.lose_node("node-2")
    for _ in range(10):
        plan = (await settle(cluster)).plan
        assert plan.apply == ()
        assert plan.events == ()
        cluster.tick()
    assert not [key for key in cluster.objects if key[0] == "Pod"]
