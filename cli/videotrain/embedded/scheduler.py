"""Which node a waiting pod gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from videotrain.embedded.transaction import stopped
from videotrain.processes.podfiles import demand
from videotrain_api.schema import Json
from videotrain_api.vocabulary import LABEL_RUN


def place(pod: Json, pods: Sequence[Json], nodes: Sequence[Json]) -> str | None:
    """Name of the first node that fits, or None.

    A node fits if it is ready and not cordoned, carries the labels of the pod's nodeSelector, is not ruled out by name
    in its required node affinity, has the extended resources left that the pod asks for, and holds no other pod of the
    same run.

    Args:
        pod: the pod to place.
        pods: all pods; those with a node that have not stopped hold their place.
        nodes: all nodes, in order of preference.
    """
    for node in nodes:
        placed = [other for other in pods if other["spec"].get("nodeName") == node["metadata"]["name"]]
        live = [other for other in placed if not stopped(other)]
        if _usable(node, pod) and not _same_run(pod, live) and _room(pod, live, node):
            return str(node["metadata"]["name"])
    return None


def is_ready(node: Json) -> bool:
    """The node's Ready condition is True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _usable(node: Json, pod: Json) -> bool:
    labels = node["metadata"].get("labels", {})
    selector = pod["spec"].get("nodeSelector") or {}
    cordoned = node.get("spec", {}).get("unschedulable", False)
    fits = all(labels.get(key) == value for key, value in selector.items())
    return is_ready(node) and not cordoned and fits and node["metadata"]["name"] not in _avoided(pod)


def _avoided(pod: Json) -> set[str]:
    """Nodes that the pod's required affinity names in `metadata.name NotIn`."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    fields = [field for term in required.get("nodeSelectorTerms", []) for field in term.get("matchFields", [])]
    named = [field for field in fields if field["key"] == "metadata.name" and field["operator"] == "NotIn"]
    return {name for field in named for name in field["values"]}


def _same_run(pod: Json, others: Sequence[Json]) -> bool:
    run = _run(pod)
    return run is not None and any(_run(other) == run for other in others)


def _run(pod: Json) -> str | None:
    return (pod["metadata"].get("labels") or {}).get(LABEL_RUN)


def _room(pod: Json, others: Sequence[Json], node: Json) -> bool:
    allocatable = node.get("status", {}).get("allocatable", {})
    return all(
        sum(demand(other, resource) for other in [*others, pod]) <= int(amount)
        for resource, amount in allocatable.items()
    )
