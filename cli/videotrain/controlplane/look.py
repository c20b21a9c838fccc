"""What goes on in a cluster of this machine, seen from any process."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from videotrain.controlplane.commands import API_SERVER, CONTROLLER_MANAGER, ETCD, SCHEDULER
from videotrain.controlplane.errors import RequestError
from videotrain.controlplane.plane import known_layout
from videotrain.controlplane.readiness import admin_api, readiness
from videotrain.kubelet.node_object import GPU_RESOURCE
from videotrain_api.schema import Json
from videotrain_api.vocabulary import API_VERSION, PLURAL

_ENDED: Final = frozenset({"Succeeded", "Failed"})
"""Phases of pods that hold nothing any more."""


@dataclass(frozen=True)
class NodeLook:
    """A node as `cluster status` shows it."""

    name: str
    ready: bool
    gpus: int
    gpus_used: int
    pods: int


@dataclass(frozen=True)
class PodLook:
    """A worker pod as `cluster status` shows it."""

    namespace: str
    name: str
    node: str
    phase: str
    """`Terminating` once its deletion was asked for."""
    age_seconds: int


@dataclass(frozen=True)
class RunLook:
    """A VideoTrainingRun as `cluster status` shows it."""

    namespace: str
    name: str
    phase: str
    stage: str
    step: int


@dataclass(frozen=True)
class Look:
    """One moment of a cluster."""

    components: dict[str, bool]
    """Whether each part of the control plane serves."""
    nodes: tuple[NodeLook, ...] = ()
    pods: tuple[PodLook, ...] = ()
    runs: tuple[RunLook, ...] = ()

    def as_json(self) -> Json:
        """As data for machines."""
        document: Json = json.loads(json.dumps(asdict(self)))
        return document


def look(directory: Path) -> Look:
    """Look at the cluster of a directory; parts that do not answer are missing from the picture.

    Raises:
        ControlPlaneError: no control plane was ever started there.
    """
    layout = known_layout(directory / "control-plane")
    components = {name: _serves(readiness(name, layout)) for name in (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER)}
    if not components[API_SERVER]:
        return Look(components)
    api = admin_api(layout)
    try:
        nodes, pods = api.get("/api/v1/nodes")["items"], api.get("/api/v1/pods")["items"]
        # Its kind comes with the operator's chart.
        status, text = api.text("GET", f"/apis/{API_VERSION}/{PLURAL}")
        runs = json.loads(text)["items"] if status == HTTPStatus.OK else []
    except (OSError, RequestError):  # it ended a moment ago, or is not complete yet
        return Look(components)
    return picture(components, nodes, pods, runs, datetime.now(UTC))


def picture(
    components: dict[str, bool], nodes: Iterable[Json], pods: Iterable[Json], runs: Iterable[Json], now: datetime
) -> Look:
    """Put together what was read."""
    listed = list(pods)
    return Look(
        components,
        tuple(_node(node, listed) for node in nodes),
        tuple(_pod(pod, now) for pod in listed),
        tuple(_run(run) for run in runs),
    )


def _serves(question: Any) -> bool:
    try:
        return bool(question())
    except OSError:
        return False


def _node(node: Json, pods: Iterable[Json]) -> NodeLook:
    status = node.get("status", {})
    name = node["metadata"]["name"]
    here = [
        pod for pod in pods if pod["spec"].get("nodeName") == name and pod.get("status", {}).get("phase") not in _ENDED
    ]
    limits = [c.get("resources", {}).get("limits", {}) for pod in here for c in pod["spec"]["containers"]]
    conditions = status.get("conditions") or []
    return NodeLook(
        name=name,
        ready=any(c["type"] == "Ready" and c["status"] == "True" for c in conditions),
        gpus=int(status.get("allocatable", {}).get(GPU_RESOURCE, 0)),
        gpus_used=sum(int(limit.get(GPU_RESOURCE, 0)) for limit in limits),
        pods=len(here),
    )


def _pod(pod: Json, now: datetime) -> PodLook:
    head = pod["metadata"]
    created = datetime.fromisoformat(head["creationTimestamp"])
    return PodLook(
        namespace=head["namespace"],
        name=head["name"],
        node=pod["spec"].get("nodeName", ""),
        phase="Terminating" if "deletionTimestamp" in head else pod.get("status", {}).get("phase", "Pending"),
        age_seconds=max(0, int((now - created).total_seconds())),
    )


def _run(run: Json) -> RunLook:
    head, status = run["metadata"], run.get("status") or {}
    return RunLook(
        namespace=head["namespace"],
        name=head["name"],
        phase=status.get("phase", ""),
        stage=status.get("stage") or "",
        step=int(status.get("step") or 0),
    )
