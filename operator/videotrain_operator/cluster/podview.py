"""From Kubernetes JSON to what the planner needs to know about a pod and its node."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from videotrain_api.records import Roster
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import ANNOTATION_PRICE, ANNOTATION_ROSTER, LABEL_INDEX
from videotrain_operator.cluster.interface import Json
from videotrain_operator.planner.observed import PodView

LOST_TAINTS: Final = frozenset({"node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"})
LEAVING_TAINTS: Final = frozenset(
    {
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "cloud.google.com/impending-node-termination",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "kubernetes.azure.com/scalesetpriority-eviction",
        "ToBeDeletedByClusterAutoscaler",
        "DeletionCandidateOfClusterAutoscaler",
    }
)
"""Taints by which autoscalers and spot handlers announce that a node will go."""
MEANINGLESS_REASONS: Final = frozenset({"Error", "Completed"})
"""Container reasons that only repeat whether the exit code is 0."""


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time with or without a fraction, as an aware datetime in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def pod_view(pod: Json, nodes: Mapping[str, Json], gpu_resource: str) -> PodView:
    """A pod as the planner sees it.

    Args:
        pod: a Pod object.
        nodes: all Node objects by name.
        gpu_resource: extended resource name of the GPUs.
    """
    head, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    annotations = head.get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    container = _worker(status)
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    node_name = spec.get("nodeName")
    node = nodes.get(node_name) if node_name else None
    created = parse_time(head.get("creationTimestamp"))
    assert created is not None, f"pod {head['name']} has no creationTimestamp"
    return PodView(
        name=head["name"],
        uid=head["uid"],
        index=int((head.get("labels") or {}).get(LABEL_INDEX, -1)),
        phase=status.get("phase", "Pending"),
        created_at=created,
        node=node_name,
        address=status.get("podIP"),
        running="running" in state,
        deleting="deletionTimestamp" in head,
        bound_at=_bound(node_name, status, conditions),
        started_at=parse_time((state.get("running") or ended).get("startedAt")),
        finished_at=_finished(status, ended, conditions),
        exit_code=ended.get("exitCode"),
        reason=_reason(status, ended, conditions),
        message=str(ended.get("message") or status.get("message") or "")[:500],
        roster=_roster(annotations.get(ANNOTATION_ROSTER)),
        gpus=_gpus(spec, gpu_resource),
        price=annotations.get(ANNOTATION_PRICE),
        node_lost=node_name is not None and (node is None or node_is_lost(node)),
        node_draining=node is not None and node_is_leaving(node),
    )


def node_is_lost(node: Json) -> bool:
    """Not ready, or marked as out of service."""
    if _taints(node) & LOST_TAINTS:
        return True
    ready = [c for c in node.get("status", {}).get("conditions") or [] if c["type"] == "Ready"]
    return bool(ready) and ready[0]["status"] != "True"


def node_is_leaving(node: Json) -> bool:
    """Cordoned, or announced to go."""
    return bool(node.get("spec", {}).get("unschedulable")) or bool(_taints(node) & LEAVING_TAINTS)


def _taints(node: Json) -> set[str]:
    return {taint["key"] for taint in node.get("spec", {}).get("taints") or []}


def _worker(status: Json) -> Json:
    containers: list[Json] = status.get("containerStatuses") or []
    named = [c for c in containers if c.get("name") == "worker"]
    return next(iter(named or containers), {})


def _bound(node: str | None, status: Json, conditions: Mapping[str, Json]) -> datetime | None:
    if node is None:
        return None
    scheduled = conditions.get("PodScheduled", {})
    at = scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None
    return parse_time(at or status.get("startTime"))


def _finished(status: Json, ended: Json, conditions: Mapping[str, Json]) -> datetime | None:
    """When the container ended; for a pod that never ran one, when its conditions last changed."""
    if ended.get("finishedAt"):
        return parse_time(ended["finishedAt"])
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    times = [parse_time(c.get("lastTransitionTime")) for c in conditions.values()]
    return max((at for at in times if at is not None), default=parse_time(status.get("startTime")))


def _reason(status: Json, ended: Json, conditions: Mapping[str, Json]) -> str | None:
    disruption = conditions.get("DisruptionTarget", {})
    scheduled = conditions.get("PodScheduled", {})
    candidates = (
        disruption.get("reason") if disruption.get("status") == "True" else None,
        ended.get("reason"),
        status.get("reason"),
        scheduled.get("reason") if scheduled.get("status") == "False" else None,
    )
    return next((reason for reason in candidates if reason and reason not in MEANINGLESS_REASONS), None)


def _gpus(spec: Json, resource: str) -> int:
    limits = [(c.get("resources") or {}).get("limits") or {} for c in spec.get("containers") or []]
    return sum(int(limit.get(resource, 0)) for limit in limits)


def _roster(text: str | None) -> Roster | None:
    """The annotation; one that does not parse counts as none, so that the planner writes it again."""
    if not text:
        return None
    try:
        return _parse_roster(text)
    except (ManifestError, json.JSONDecodeError):
        return None


@lru_cache(maxsize=64)
def _parse_roster(text: str) -> Roster:
    """All members carry the same text, so it is parsed once."""
    data: Any = json.loads(text)
    return Roster.from_wire(data)
