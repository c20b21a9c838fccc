"""The real operator over a simulated cluster, second by second, while a script of events happens to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from videotrain_api.resource.status import RunStatus
from videotrain_api.vocabulary import Phase
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.reconcile import Outcome, RunKey, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash

Event = Callable[[SimulatedCluster], object]
"""Something that people, machines or queues do to the cluster, such as `lambda c: c.lose_node("node-1")`."""
MOST_PASSES: Final = 12
"""Passes of one second; a plan that asks for more goes round in circles."""


async def settle(cluster: SimulatedCluster) -> Outcome:
    """Passes until none asks for another at once. An operator that crashed, or met a conflict, begins anew.

    Raises:
        NotFound: the run is gone.
        RuntimeError: the planner does not come to rest.
    """
    key = RunKey(namespace=cluster.namespace, name=cluster.name)
    for _ in range(MOST_PASSES):
        try:
            outcome = await reconcile(
                cluster,
                key,
                lambda: cluster.now,
                cluster,
                nodes_untrusted=cluster.nodes_untrusted,
                rules=cluster.rules,
                budgets=cluster.budgets,
            )
        except (OperatorCrash, Conflict):
            continue
        if outcome.requeue_seconds != 0:
            return outcome
    raise RuntimeError(f"the planner does not come to rest within {MOST_PASSES} passes at {cluster.stamp()}")


async def replay(
    cluster: SimulatedCluster,
    script: Mapping[int, Event],
    *,
    seconds: int,
    first: int = 0,
    before_second: Callable[[int], None] | None = None,
    after_pass: Callable[[int, Outcome], None] | None = None,
) -> RunStatus:
    """Let the script happen until the run is over and its pods are gone.

    Args:
        cluster: as it is at second `first`; it is changed.
        script: by second, what happens at its beginning.
        seconds: how long the run may take.
        first: where to begin, to go on with a copy.
        before_second: told of each second before anything happens in it.
        after_pass: told of what the operator did in each second.

    Returns:
        The run's last status.

    Raises:
        RuntimeError: the run takes longer, or the planner does not come to rest.
    """
    for second in range(first, seconds):
        if before_second is not None:
            before_second(second)
        if second in script:
            script[second](cluster)
        outcome = await settle(cluster)
        if after_pass is not None:
            after_pass(second, outcome)
        if outcome.plan.status.phase in (Phase.SUCCEEDED, Phase.FAILED) and not cluster.held_pods():
            return RunStatus.from_wire(cluster.run["status"])
        cluster.tick()
    raise RuntimeError(f"the run is not over after {seconds} s of simulated time")
