"""Applying: the only writer of the cluster."""

from __future__ import annotations

from typing import Final

from videotrain_api.vocabulary import FIELD_MANAGER, KIND
from videotrain_operator.cluster.interface import Cluster, Json
from videotrain_operator.planner.decision import Manifest, Plan

ROSTER_MANAGER: Final = f"{FIELD_MANAGER}-roster"
"""Owns the roster annotation apart from the pod, which its creator applies whole and once."""


async def apply(cluster: Cluster, run: Json, plan: Plan) -> None:
    """Carry out a plan: objects, deletions, status, events, and at last the end of the run.

    Args:
        cluster: where to write.
        run: the object that the plan was made for; its resourceVersion guards the status.
        plan: what to do.

    Raises:
        Conflict: something changed since it was observed; observe and plan again.
        NotFound: the run is gone.
    """
    head = run["metadata"]
    namespace, name = head.get("namespace", "default"), head["name"]
    for manifest in plan.apply:
        await cluster.apply(manifest, manager_of(manifest))
    for item in plan.delete:
        await cluster.delete(item.kind, namespace, item.name, uid=item.uid, grace_seconds=item.grace_seconds)
    status = plan.status.to_wire()
    if status != (run.get("status") or {}):
        await cluster.replace_status(KIND, namespace, name, status, head["resourceVersion"])
    for event in plan.events:
        await cluster.emit_event(run, event.type, event.reason, event.message)
    if plan.delete_run:
        await cluster.delete(KIND, namespace, name, uid=head["uid"])


def manager_of(manifest: Manifest) -> str:
    """Field manager under which a manifest is applied: a pod without a spec is only a roster."""
    return ROSTER_MANAGER if manifest["kind"] == "Pod" and "spec" not in manifest else FIELD_MANAGER
