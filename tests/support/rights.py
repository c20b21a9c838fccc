"""Giving a user of a real control plane the rights that the documentation lists, and no more."""

from __future__ import annotations

from support.chart import RELEASE, Rules, table

from videotrain.controlplane.api import Api

RUNS, CLUSTER, RELEASED = "namespaces of runs", "cluster", "namespace of the release"
ENFORCEMENT = "rbac.ownerReferencesPermissionEnforcement"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
LEASE = RELEASE
"""Name of the lease that the documented rights are about."""
KEY_SECRET = f"{RELEASE}-key"
"""Name of the Secret for the master key."""


def grant_operator(api: Api, user: str, lease_namespace: str, namespaces: tuple[str, ...] = ()) -> None:
    """The operator's rights on runs in the namespaces (everywhere if none is given), on nodes and on its own lease.

    The lease and the Secret for the master key are created too, as the chart does, since the operator has no right to.
    """
    everywhere = table(CLUSTER)
    if not namespaces:
        everywhere = everywhere | table(RUNS, but=ENFORCEMENT)
    for namespace in namespaces:
        _grant(api, user, table(RUNS, but=ENFORCEMENT), namespace, "runs")
    _grant(api, user, everywhere)
    _grant(api, user, table(RELEASED), lease_namespace, "release")
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE, "namespace": lease_namespace},
    }
    api.apply(f"/apis/coordination.k8s.io/v1/namespaces/{lease_namespace}/leases/{LEASE}", lease)
    head = {"name": KEY_SECRET, "namespace": lease_namespace}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": head}
    api.apply(f"/api/v1/namespaces/{lease_namespace}/secrets/{KEY_SECRET}", secret)


def _grant(api: Api, user: str, rights: Rules, namespace: str = "", what: str = "cluster") -> None:
    kind = "Role" if namespace else "ClusterRole"
    place = f"{_RBAC}/namespaces/{namespace}" if namespace else _RBAC
    name = f"{user}-{what}"
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb], **({"resourceNames": [only]} if only else {})}
        for group, resource, verb, only in sorted(rights)
    ]
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
    api.apply(f"{place}/{kind.lower()}s/{name}", head | {"kind": kind, "rules": rules})
    binding = head | {"kind": f"{kind}Binding", "subjects": [subject], "roleRef": reference}
    api.apply(f"{place}/{kind.lower()}bindings/{name}", binding)
