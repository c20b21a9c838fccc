"""Fake nodes that KWOK keeps alive, for tests and measurements at a size that one machine cannot run for real."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from videotrain.controlplane.api import MERGE, Api
from videotrain.controlplane.commands import KWOK, USERS
from videotrain.controlplane.settings import Kwok
from videotrain_api.schema import Json

ANNOTATION: Final = {"kwok.x-k8s.io/node": "fake"}
LABEL: Final = {"type": "kwok"}
H200_NODE: Final = {"cpu": "192", "memory": "2048Gi", "ephemeral-storage": "8Ti", "pods": "110", "nvidia.com/gpu": "8"}
"""What a node of eight H200 GPUs has to give."""
_THREADS: Final = 4
_STAGES: Final = Path(__file__).with_name("stages.yaml")
_RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"


def prepare(api: Api, directory: Path, settings: Kwok) -> None:
    """Write KWOK's configuration and give its user the rights that it needs."""
    # KWOK fills in no defaults of a configuration file: those beside ours are its own.
    stock = {"nodePlayStageParallelism": 4, "nodeLeaseParallelism": 4, "podsOnNodeSyncParallelism": 1}
    options = stock | {"podPlayStageParallelism": settings.pods_at_a_time}
    head = {"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration", "options": options}
    # JSON is YAML; the file is several documents.
    (directory / "stages.yaml").write_text(f"{json.dumps(head)}\n---\n{_STAGES.read_text()}")
    role, binding = _permissions()
    api.apply(f"{_RBAC}/clusterroles/videotrain-kwok", role)
    api.apply(f"{_RBAC}/clusterrolebindings/videotrain-kwok", binding)


def create_nodes(
    api: Api,
    names: Sequence[str],
    *,
    capacity: Mapping[str, str] = H200_NODE,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
) -> None:
    """Create fake nodes that are ready when this returns.

    Args:
        api: requests as an administrator.
        names: of the nodes.
        capacity: resources of each node.
        labels: beside the host name and `type: kwok`.
        taints: of each node.

    Raises:
        RequestError: a name is taken, or something is not valid.
    """

    def create(requests: Api, name: str) -> None:
        requests.request("POST", "/api/v1/nodes", fake_node(name, capacity, labels or {}, taints))
        # A new node is tainted as not ready; the controller manager would take the taint away at its own pace.
        requests.request("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": list(taints)}}, MERGE)

    _for_each(api, names, create)


def _for_each(api: Api, names: Sequence[str], act: Callable[[Api, str], None]) -> None:
    def share(mine: Sequence[str]) -> None:
        with api.kept() as requests:
            for name in mine:
                act(requests, name)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(share, [names[index::_THREADS] for index in range(_THREADS)]))  # raises what a thread raised


def node_names(count: int, prefix: str = "fake") -> list[str]:
    """Names that sort as they count: fake-0000, fake-0001, ..."""
    return [f"{prefix}-{index:04d}" for index in range(count)]


def fake_node(
    name: str, capacity: Mapping[str, str], labels: Mapping[str, str], taints: Sequence[Mapping[str, str]]
) -> Json:
    """The manifest of a fake node, with the status of one that is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": dict(ANNOTATION),
            "labels": LABEL | {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | dict(labels),
        },
        "spec": {"taints": [dict(taint) for taint in taints]},
        "status": {
            "capacity": dict(capacity),
            "allocatable": dict(capacity),
            "conditions": list(_conditions()),
            "addresses": [{"type": "Hostname", "address": name}],
            "nodeInfo": _node_info(),
        },
    }


def _conditions() -> Iterator[Json]:
    yield {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "a fake node is always ready"}
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
        yield {"type": kind, "status": "False", "reason": f"KubeletHasNo{kind}", "message": "a fake node has enough"}


def _node_info() -> Json:
    unknown = dict.fromkeys(("bootID", "machineID", "systemUUID", "osImage", "kernelVersion", "kubeProxyVersion"), "")
    known = {"architecture": "amd64", "operatingSystem": "linux"}
    return unknown | known | {"kubeletVersion": "fake", "containerRuntimeVersion": "fake"}


def _permissions() -> tuple[Json, Json]:
    def rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Json:
        return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}

    read = ("get", "list", "watch")
    rules = [
        rule("", ["nodes", "pods"], read),
        rule("", ["pods"], ["delete", "patch", "update"]),
        rule("", ["nodes/status", "pods/status"], ["patch", "update"]),
        rule("", ["events"], ["create", "patch", "update"]),
        rule("coordination.k8s.io", ["leases"], [*read, "create", "patch", "update"]),
    ]
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "videotrain-kwok"}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "videotrain-kwok"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USERS[KWOK]}
    role = head | {"kind": "ClusterRole", "rules": rules}
    return role, head | {"kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]}
