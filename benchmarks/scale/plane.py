"""The control plane as it is measured: real components of their own users, an audit log, KWOK's nodes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final

from scale import audit
from scale.network import POD_RANGE
from scale.nodes import LEASE_SECONDS
from videotrain.controlplane.commands import API_SERVER, CONTROLLER_MANAGER, Layout
from videotrain.controlplane.errors import RequestError
from videotrain.controlplane.kwok import create_nodes
from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.settings import PROFILES, Kwok, NodeMonitoring
from videotrain.controlplane.settings import Settings as PlaneSettings
from videotrain_api.crd.definition import custom_resource_definition
from videotrain_api.generate.chart_permissions import RIGHTS
from videotrain_api.vocabulary import SIGNING_KEY
from videotrain_operator.manager.settings import Settings

NAMESPACE: Final = "scale"
OPERATOR_NAMESPACE: Final = "videotrain-system"
OPERATOR: Final = "videotrain-operator"
DAY: Final = 86400
_RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
Json = dict[str, Any]


class MeasuredPlane(ControlPlane):
    """A control plane that logs its writes."""

    @property
    def audit_log(self) -> Path:
        """Writes, a JSON line each."""
        return self.directory / "logs" / "audit.jsonl"

    def _arguments(self, name: str, layout: Layout) -> list[str]:
        arguments = super()._arguments(name, layout)
        if name != API_SERVER:
            return arguments
        policy = self.directory / "audit-policy.json"
        policy.write_text(json.dumps(audit.POLICY))
        self.audit_log.parent.mkdir(parents=True, exist_ok=True)
        return [*arguments, f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}", *audit.FLAGS]


def make_plane(directory: Path, profile: str, *, heartbeats: bool) -> MeasuredPlane:
    """A control plane that is not started yet.

    Args:
        directory: its data and logs.
        profile: `raised` or `stock` request limits.
        heartbeats: nodes have leases and the stock grace period; without, they are quiet and never late, so that they
            do not load the API server where nothing is about nodes.
    """
    nodes = NodeMonitoring() if heartbeats else NodeMonitoring(grace_seconds=DAY)
    kwok = Kwok(pod_range=POD_RANGE, lease_seconds=LEASE_SECONDS if heartbeats else 0)
    return MeasuredPlane(directory, PlaneSettings(profile=PROFILES[profile], nodes=nodes, kwok=kwok))


def prepare(plane: MeasuredPlane, nodes: list[str], *, operator: bool) -> None:
    """Namespace, nodes and, for the operator, kind, user and rights. Blocks until all of it can be used."""
    api = plane.api()
    namespaces = [NAMESPACE, OPERATOR_NAMESPACE] if operator else [NAMESPACE]
    for name in namespaces:
        api.apply(f"/api/v1/namespaces/{name}", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    if operator:
        plane.install(custom_resource_definition())
        role, binding = operator_permissions()
        api.apply(f"{_RBAC}/clusterroles/{OPERATOR}", role)
        api.apply(f"{_RBAC}/clusterrolebindings/{OPERATOR}", binding)
        # The garbage collector looks for new kinds now and then; started anew, it knows ours at once.
        plane.kill(CONTROLLER_MANAGER)
        plane.start(CONTROLLER_MANAGER)
    create_nodes(api, nodes)
    for name in namespaces:
        _until_usable(plane, name)


def restore_node(plane: MeasuredPlane, name: str) -> None:
    """Bring back a node that was deleted."""
    create_nodes(plane.api(), [name])


def master_key(plane: MeasuredPlane) -> bytes:
    """The key that the operator has made for itself, by which the simulated agents know it."""
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/secrets/{Settings().key_secret}"
    return base64.b64decode(plane.api().get(path)["data"][SIGNING_KEY])


def operator_user() -> tuple[str, tuple[str, ...]]:
    """The operator's user and groups: a service account's, and with them the priority of a workload."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{OPERATOR_NAMESPACE}")
    return f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}", groups


def operator_permissions() -> tuple[Json, Json]:
    """A ClusterRole with the rights that the chart gives, and its binding. The chart makes Lease and key."""
    rules = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in RIGHTS]
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "patch"]}
    key = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "update"]}
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": OPERATOR}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": OPERATOR}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": operator_user()[0]}
    role = head | {"kind": "ClusterRole", "rules": [*rules, leases, key]}
    return role, head | {"kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]}


def _until_usable(plane: MeasuredPlane, namespace: str) -> None:
    """Pods are refused until their namespace has its service account."""
    api = plane.api()

    def usable() -> bool:
        try:
            return bool(api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"))
        except RequestError:
            return False

    component = next(item for item in plane.components if item.name == CONTROLLER_MANAGER)
    plane._until(usable, component, f"make the service account of namespace {namespace}")
