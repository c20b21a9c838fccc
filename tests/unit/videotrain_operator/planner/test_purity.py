"""A plan depends on its input alone and leaves it as it was, at every moment of a run's life."""

from __future__ import annotations

import copy
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.planner_builders import run_of
from support.planner_lives import KEY, cluster_of

from videotrain_operator.cluster.observe import observe
from videotrain_operator.planner.plan import plan
from videotrain_operator.reconcile import reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster

HAPPENINGS = {
    "nothing": lambda c: None,
    "lose a node": lambda c: c.lose_node("node-1"),
    "drain a node": lambda c: c.draining.add("node-0"),
    "fail a worker": lambda c: c.fail_worker("demo-w0", 1) if ("Pod", "demo-w0") in c.objects else None,
    "hang": lambda c: c.hang(),
    "suspend": lambda c: c.edit(suspend=True),
    "resume": lambda c: c.edit(suspend=False),
    "shrink": lambda c: c.edit(nodes={"min": 1, "max": 1}),
    "spend": lambda c: c.edit(budget={"maxCost": "0.01"}),
    "cannot be run": lambda c: c.edit(nodes={"min": 5, "max": 4}),
    "empty the status": lambda c: c.wipe_status(),
    "delete the ledger": lambda c: c.drop("ConfigMap", "ledger"),
    "trust no node": lambda c: setattr(c, "nodes_untrusted", "3 of 4 nodes in use are lost"),
}


async def check(cluster: SimulatedCluster) -> None:
    body, observed = await observe(cluster, KEY.namespace, KEY.name, cluster)
    run, seen, now = run_of(body), replace(observed, nodes_untrusted=cluster.nodes_untrusted), cluster.now
    run_before, seen_before = copy.deepcopy((run, seen))
    first, second = plan(run, seen, now), plan(run, seen, now)
    assert first == second
    assert (run, seen) == (run_before, seen_before)


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(sorted(HAPPENINGS))), max_size=6))
@example([(0, "cannot be run")])
@settings(max_examples=15)
async def test_a_plan_made_twice_is_the_same_and_its_input_unchanged(script: list[tuple[int, str]]) -> None:
    cluster = cluster_of(steps=15)
    for seconds, event in [(3, "nothing"), *script, (10, "nothing")]:
        HAPPENINGS[event](cluster)
        for _ in range(seconds + 1):
            await check(cluster)
            await reconcile(cluster, KEY, lambda: cluster.now, cluster, nodes_untrusted=cluster.nodes_untrusted)
            cluster.tick()
