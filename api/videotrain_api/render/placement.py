"""Where worker pods may run: one per node, near one another, away from suspect nodes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

from videotrain_api.render.names import selector
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.trainrun import VideoTrainingRun

LOST_NODE_SECONDS: Final = 45
"""How long a node may be away before its pods are evicted; longer than a kubelet restart, far below the default 300."""
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
_HIGHEST_WEIGHT: Final = 100


def affinity(run: VideoTrainingRun, pool: Pool, given: dict[str, Any] | None, avoid: Sequence[str]) -> dict[str, Any]:
    """The affinity of a worker.

    Args:
        run: the run.
        pool: of the stage that the pod is made for.
        given: affinity of the pod template; all of it is kept.
        avoid: names of nodes to stay away from.
    """
    result: dict[str, Any] = copy.deepcopy(given or {})
    _add(result, "podAntiAffinity", _REQUIRED, [_beside(run, "kubernetes.io/hostname")])
    # Each key counts twice as much as all that follow it would alone.
    near = [
        {"weight": _HIGHEST_WEIGHT >> rank, "podAffinityTerm": _beside(run, key)}
        for rank, key in enumerate(pool.topology_keys)
    ]
    _add(result, "podAffinity", _PREFERRED, near)
    if avoid:
        _avoid(result, avoid)
    return result


def tolerations(pool: Pool) -> list[dict[str, Any]]:
    """Tolerations of the pool, and those for nodes that are away for a moment."""
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    base = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
    return [item.to_wire() for item in pool.tolerations] + [{"key": key} | base for key in keys]


def _add(affinity: dict[str, Any], kind: str, when: str, terms: list[dict[str, Any]]) -> None:
    if terms:
        kinds = affinity.get(kind) or {}
        affinity[kind] = kinds | {when: [*(kinds.get(when) or []), *terms]}


def _beside(run: VideoTrainingRun, topology_key: str) -> dict[str, Any]:
    return {"labelSelector": {"matchLabels": selector(run)}, "topologyKey": topology_key}


def _avoid(affinity: dict[str, Any], nodes: Sequence[str]) -> None:
    """Terms are alternatives, so each of them has to exclude the nodes."""
    # One requirement per node: the API server allows a single value in matchFields.
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    kinds = affinity.get("nodeAffinity") or {}
    terms = (kinds.get(_REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    excluding = [term | {"matchFields": [*(term.get("matchFields") or []), *fields]} for term in terms]
    affinity["nodeAffinity"] = kinds | {_REQUIRED: {"nodeSelectorTerms": excluding}}
