"""One wrong reading of a clock, or an untrusted time, ends, kills, suspends and deletes nothing."""

from datetime import timedelta
from typing import Any

import pytest
from support.planner_builders import manifest

from videotrain_api.resource.status import RunStatus
from videotrain_operator.reconcile import RunKey, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import replay, settle

KEY = RunKey(namespace="default", name="demo")
BUDGET = {"maxCost": "2.00"}
CASES: dict[str, dict[str, Any]] = {
    "suspends": {"budget": BUDGET | {"action": "CheckpointAndSuspend"}},
    "fails": {"budget": BUDGET | {"action": "Fail"}},
    "deadline": {"activeDeadlineSeconds": 600},
    "start deadline": {"startDeadlineSeconds": 600},
    "start": {"failurePolicy": {"hangSeconds": 60, "startSeconds": 300, "graceSeconds": 20}},
}


def cluster_of(**spec: Any) -> SimulatedCluster:
    return SimulatedCluster(manifest(nodes={"min": 2, "max": 2}, **spec), nodes=2)


async def one_wrong_pass(cluster: SimulatedCluster, seconds: float, untrusted: str = "") -> RunStatus:
    """A pass whose clock is wrong, and what it asks for at once."""
    wrong = cluster.now + timedelta(seconds=seconds)
    outcome = await reconcile(cluster, KEY, lambda: wrong, cluster, time_untrusted=untrusted)
    return outcome.plan.status


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
@pytest.mark.parametrize("after", [1, 4, 30])
@pytest.mark.parametrize("case", CASES)
async def test_one_wrong_reading_changes_nothing_that_a_run_comes_to(case: str, after: int, jump: float) -> None:
    cluster, right = cluster_of(**CASES[case]), cluster_of(**CASES[case])
    for _ in range(after):
        for each in (cluster, right):
            await settle(each)
            each.tick()
    status = await one_wrong_pass(cluster, jump)
    await one_wrong_pass(right, 0.0)
    assert not [c for c in status.conditions if c.type in ("Failed", "Suspended") and c.status == "True"]
    assert cluster.pods()
    one = await replay(cluster, {}, seconds=400, first=after)
    other = await replay(right, {}, seconds=400, first=after)
    assert one.phase == other.phase == "Succeeded"
    assert one.restarts == other.restarts and one.budget_stop is None
    assert one.generation == other.generation
    assert one.cost is not None and other.cost is not None
    # What that pass told in counters and took back stays on record, so that they need not fall.
    assert one.cost.model_copy(update={"corrections": other.cost.corrections}) == other.cost
    assert one.active_microseconds == other.active_microseconds


@pytest.mark.parametrize("case", CASES)
async def test_nothing_is_decided_by_untrusted_time_however_often_it_is_looked(case: str) -> None:
    cluster = cluster_of(**CASES[case])
    for _ in range(1 if case.startswith("start") else 20):
        await settle(cluster)
        cluster.tick()
    for second in range(5):
        status = await one_wrong_pass(cluster, 86_400 + second, untrusted="the clock jumped")
        assert status.phase not in ("Failed", "Suspended", "Suspending") and status.restarts.hang == 0
    assert cluster.pods()


async def test_a_finished_run_is_not_deleted_by_one_wrong_reading() -> None:
    cluster = cluster_of(ttlSecondsAfterFinished=3600)
    await replay(cluster, {}, seconds=400)
    await one_wrong_pass(cluster, 86_400)
    await settle(cluster)
    assert cluster.run["status"]["phase"] == "Succeeded"


async def test_a_limit_that_is_really_passed_is_acted_upon_by_the_second_look() -> None:
    cluster = cluster_of(activeDeadlineSeconds=20)
    status = await replay(cluster, {}, seconds=60)
    assert status.phase == "Failed" and status.active_microseconds <= 30_000_000
