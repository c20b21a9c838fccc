"""A run whose passes fail: it is said where people look, and its pods are held to its limits all the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.training_budgets import TrainingBudget
from videotrain_api.vocabulary import KIND, LABEL_RUN, LABEL_RUN_UID, Condition
from videotrain_operator.cluster.apply import delete_seen
from videotrain_operator.cluster.interface import Cluster
from videotrain_operator.cluster.podview import gpu_resources, pod_view
from videotrain_operator.planner.conditions import stored_with_condition
from videotrain_operator.planner.limits import overdue_pods

FAILED_PASSES: Final = 3
"""So many in a row, seconds apart, are no passing trouble."""


async def hold_to_limits(
    cluster: Cluster,
    namespace: str,
    name: str,
    now: datetime,
    time_untrusted: str = "",
    budgets: Sequence[TrainingBudget] = (),
) -> None:
    """Delete the pods that suspension, deadline or budget want gone, by what can be read.

    Args:
        cluster: where the run lives.
        namespace: its namespace.
        name: its name.
        now: aware.
        time_untrusted: why that may be wrong; then only suspension is kept.
        budgets: those of teams, as they are stored.

    Raises:
        NotFound: the run is gone.
        Conflict: a pod changed meanwhile.
    """
    run = await cluster.get(KIND, namespace, name)
    labels = {LABEL_RUN: name, LABEL_RUN_UID: run["metadata"]["uid"]}
    pods = [pod_view(pod, {}, gpu_resources(run)) for pod in await cluster.list("Pod", namespace, labels)]
    await delete_seen(cluster, namespace, overdue_pods(run, pods, now, time_untrusted, budgets))


async def warn_unreconciled(cluster: Cluster, namespace: str, name: str, error: Exception, count: int) -> None:
    """Tell by an event that passes fail: of the first time, since the status may be what is refused again and again.

    Args:
        cluster: where the run lives.
        namespace: its namespace.
        name: its name.
        error: of the last pass.
        count: passes that failed in a row.

    Raises:
        NotFound: the run is gone.
    """
    run = await cluster.get(KIND, namespace, name)
    await cluster.emit_event(run, "Warning", Reason.PASSES_FAIL, _words(error, count))


async def tell_unreconciled(
    cluster: Cluster, namespace: str, name: str, error: Exception, count: int, now: datetime
) -> None:
    """Set the condition Reconciled to False; all else in the status stays as it is.

    Args:
        cluster: where the run lives.
        namespace: its namespace.
        name: its name.
        error: of the last pass.
        count: passes that failed in a row.
        now: aware.

    Raises:
        NotFound: the run is gone.
        Conflict: it changed meanwhile.
    """
    run = await cluster.get(KIND, namespace, name)
    status = stored_with_condition(run, Condition.RECONCILED, False, Reason.PASSES_FAIL, _words(error, count), now)
    await cluster.replace_status(KIND, namespace, name, status, run["metadata"].get("resourceVersion", ""))


def _words(error: Exception, count: int) -> str:
    return Message.PASSES_FAIL.text(count=count, why=f"{type(error).__name__}: {error}")
