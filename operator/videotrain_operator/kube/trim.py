"""What the operator keeps of an object: the parts that it reads, with shared strings.

A worker pod is 10 KB of JSON and thousands are cached; what is kept is a tenth of that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from videotrain_api.render.network import stored_policy
from videotrain_api.schema import Json
from videotrain_api.vocabulary import (
    DOMAIN,
    FILES_VOLUME,
    FROZEN_SPEC_KEY,
    KIND,
    KUEUE,
    LABEL_INDEX,
    LABEL_POOL,
    LABEL_RUN,
    LABEL_RUN_UID,
    LEDGER_KEY,
    ROSTER_KEY,
)

_HEAD: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
)
_LABELS: Final = (LABEL_RUN, LABEL_RUN_UID, LABEL_INDEX, LABEL_POOL)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_WORD: Final = 40
_CONDITION: Final = ("type", "status", "reason", "message", "lastTransitionTime")


def trim(body: Json) -> Json:
    """A reduced copy of an object of a kind that the operator caches; any other as it is."""
    if body["kind"] == KIND:
        return trim_run(body)
    reduce = _REDUCERS.get(body["kind"])
    if reduce is None:
        return body
    return {
        "apiVersion": sys.intern(body["apiVersion"]),
        "kind": sys.intern(body["kind"]),
        "metadata": _metadata(body["metadata"], all_labels=body["kind"] == "Node"),  # by which nodes are priced
    } | reduce(body)


def _metadata(head: Json, *, all_labels: bool) -> Json:
    labels = {
        _shared(key): _shared(value)
        for key, value in (head.get("labels") or {}).items()
        if all_labels or key in _LABELS or key.startswith(f"{KUEUE}/")
    }
    annotations = {
        _shared(key): _shared(value) for key, value in (head.get("annotations") or {}).items() if key.startswith(DOMAIN)
    }
    found = _pick(head, _HEAD)
    if head.get("ownerReferences"):
        found["ownerReferences"] = _owners(tuple(owner["uid"] for owner in head["ownerReferences"]))
    return found | ({"labels": labels} if labels else {}) | ({"annotations": annotations} if annotations else {})


@lru_cache(maxsize=4096)
def _owners(uids: tuple[str, ...]) -> list[Json]:
    """Of many objects of one owner in memory once."""
    return [{"uid": uid} for uid in uids]


def _pick(source: Json, keys: tuple[str, ...]) -> Json:
    return {key: _shared(source[key]) for key in keys if key in source}


def _shared(value: Any) -> Any:
    """Equal strings of many objects are one in memory."""
    return sys.intern(value) if type(value) is str else value


def _pod(body: Json) -> Json:
    spec, status = body.get("spec", {}), body.get("status", {})
    containers = [
        {"name": _shared(container["name"]), "resources": {"limits": _limits(container)}}
        for container in spec.get("containers") or []
    ]
    volumes = [
        {"name": FILES_VOLUME, "projected": {"sources": _sources(volume)}}
        for volume in spec.get("volumes") or []
        if volume["name"] == FILES_VOLUME
    ]
    kept = _pick(status, ("phase", "podIP", "reason", "message", "startTime"))
    kept["conditions"] = [_pick(item, _CONDITION) for item in status.get("conditions") or []]
    kept["containerStatuses"] = [_container(item) for item in status.get("containerStatuses") or []]
    kept["initContainerStatuses"] = [_container(item) for item in status.get("initContainerStatuses") or []]
    return {
        "spec": _pick(spec, ("nodeName", "schedulingGates")) | {"containers": containers, "volumes": volumes},
        "status": kept,
    }


def _sources(volume: Json) -> list[Json]:
    """Names of the objects that a pod has mounted."""
    sources = (volume.get("projected") or {}).get("sources") or []
    return [
        {kind: {key: _shared(value) for key, value in _pick(source[kind], ("name",)).items()}}
        for source in sources
        for kind in ("secret", "configMap")
        if source.get(kind)
    ]


def _limits(container: Json) -> Json:
    limits = (container.get("resources") or {}).get("limits") or {}
    return {_shared(key): _shared(value) for key, value in limits.items()}


def _container(status: Json) -> Json:
    return {"name": _shared(status["name"]), "state": status.get("state") or {}}


def _node(body: Json) -> Json:
    spec, status = body.get("spec", {}), body.get("status", {})
    taints = [_pick(taint, ("key", "effect")) for taint in spec.get("taints") or []]
    ready = [_pick(item, _CONDITION) for item in status.get("conditions") or [] if item["type"] == "Ready"]
    there = status.get("allocatable") or {}
    gpus = {_shared(key): _shared(str(count)) for key, count in there.items() if key.endswith("/gpu")}
    return {
        "spec": _pick(spec, ("unschedulable",)) | ({"taints": taints} if taints else {}),
        "status": {"conditions": ready} | ({"allocatable": gpus} if gpus else {}),
    }


def _config_map(body: Json) -> Json:
    data = body.get("data") or {}
    return {"data": {key: data[key] for key in (FROZEN_SPEC_KEY, LEDGER_KEY, ROSTER_KEY) if key in data}}


_REDUCERS: Final[dict[str, Callable[[Json], Json]]] = {
    "Pod": _pod,
    "Node": _node,
    "ConfigMap": _config_map,
    "NetworkPolicy": lambda body: {"spec": _lean(stored_policy(body.get("spec") or {}))},
}


def trim_run(body: Json) -> Json:
    """A run without what only the API server and kubectl keep on it."""
    head = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    annotations = {k: v for k, v in (head.get("annotations") or {}).items() if k != _LAST_APPLIED}
    kept: Json = _lean(body | {"metadata": head | ({"annotations": annotations} if annotations else {})})
    return kept


def _lean(value: Any) -> Any:
    """The same data with names and short words in memory once, however many runs there are."""
    if isinstance(value, dict):
        return {_shared(key): _lean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_lean(item) for item in value]
    return _shared(value) if isinstance(value, str) and len(value) <= _WORD else value
