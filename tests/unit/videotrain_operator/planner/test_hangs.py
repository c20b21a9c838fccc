"""A hang names the rank that stands in no collective, and the next world is made without its node."""

from __future__ import annotations

import pytest
from support.planner_builders import manifest, train_stage
from support.planner_lives import condition, pass_seconds, told

from videotrain_api.stacks import MOST_TOLD, joined
from videotrain_operator.planner.hangs import STACKS_SECONDS
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.world import Pace

WAITS = joined({0: "Thread 1 (idle)\n    all_reduce (torch/distributed/distributed_c10d.py:2990)\n"}, MOST_TOLD)
STANDS = joined({0: "Thread 1 (active)\n    read (data/loader.py:40)\n    step (engine.py:9)\n"}, MOST_TOLD)

PODS = ("demo-w0", "demo-w1", "demo-w2")


def cluster(nodes: int = 4) -> SimulatedCluster:
    body = manifest(stages=[train_stage(steps=40)], failurePolicy={"hangSeconds": 10})
    return SimulatedCluster(body, nodes=nodes, pace=Pace(every_steps=4))


def node_of(run: SimulatedCluster, pod: str) -> str:
    return str(run.objects["Pod", pod]["spec"]["nodeName"])


async def test_the_rank_for_which_others_wait_is_named_and_its_node_avoided() -> None:
    run = cluster()
    await pass_seconds(run, 10)
    bad = node_of(run, "demo-w1")
    run.hang({"demo-w0": WAITS, "demo-w1": STANDS, "demo-w2": WAITS})
    status = await pass_seconds(run, 25)
    hung = status.generations[0]
    assert (hung.end_cause, hung.culprit) == ("hang", f"rank 2 (pod demo-w1, node {bad})")
    assert hung.progress is not None and hung.progress.stacks == STANDS
    (message,) = told(run, "HangCulprit")
    assert "2 other ranks wait" in message and "read (data/loader.py:40) < step (engine.py:9)" in message
    assert [node.name for node in status.suspect_nodes] == [bad]
    assert bad not in {node_of(run, name) for name in status.generations[-1].members}
    assert status.restarts.hang == 1
    assert (await pass_seconds(run, 60)).phase == "Succeeded"


@pytest.mark.parametrize(
    "stacks",
    [
        {},
        {"demo-w0": WAITS, "demo-w1": WAITS, "demo-w2": WAITS},
        dict.fromkeys(("demo-w0", "demo-w1", "demo-w2"), STANDS),
    ],
    ids=["nobody tells", "all wait", "nobody waits"],
)
async def test_where_nobody_stands_out_nobody_is_named(stacks: dict[str, str]) -> None:
    run = cluster()
    await pass_seconds(run, 10)
    run.hang(stacks)
    status = await pass_seconds(run, 25)
    assert (status.generations[0].culprit, status.suspect_nodes) == ("", [])
    assert not told(run, "HangCulprit")
    assert (await pass_seconds(run, 60)).phase == "Succeeded"


async def test_several_that_stand_out_on_several_nodes_are_named_and_no_node_is_avoided() -> None:
    run = cluster()
    await pass_seconds(run, 10)
    run.hang({"demo-w0": WAITS, "demo-w1": STANDS, "demo-w2": STANDS})
    status = await pass_seconds(run, 25)
    assert (status.generations[0].culprit or "").count("rank ") == 2
    assert status.suspect_nodes == []


async def test_a_member_that_tells_nothing_is_not_waited_for_long() -> None:
    run = cluster()
    await pass_seconds(run, 10)
    run.hang({"demo-w0": WAITS})
    run.agents[run.objects["Pod", "demo-w1"]["metadata"]["uid"]].silent = True
    status = await pass_seconds(run, 10 + 4)
    assert status.generations[-1].end_cause == "hang"
    assert "tell where they stand" in condition(status, "Restarting").message
    status = await pass_seconds(run, int(STACKS_SECONDS) + 4)
    assert status.generations[0].culprit is not None and status.generation > 1
