"""What the operator may do on the API server: the one source of the chart's roles and of the page about them.

A right stands here only if the operator uses it; a test lets runs live their lives and compares both sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from videotrain_api.vocabulary import BUDGET_PLURAL, GROUP, PLURAL

_COMMAND: Final = "python -m videotrain_api.generate write"


class Place(StrEnum):
    """Where a right holds."""

    RUNS = "runs"
    """In the namespaces whose runs are served: all, or those that the chart's value `namespaces` names."""
    CLUSTER = "cluster"
    """On objects outside of any namespace."""
    RELEASE = "release"
    """In the namespace of the release."""


_PLACES: Final = {
    Place.RUNS: "namespaces of runs",
    Place.CLUSTER: "cluster",
    Place.RELEASE: "namespace of the release",
}


@dataclass(frozen=True)
class Right:
    """Verbs on one resource, and why they are needed."""

    place: Place
    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    only: str = ""
    """Helm template that names the one object that the right is about."""
    only_name: str = ""
    """The same in words."""
    value: str = ""
    """Value of the chart that must be true for it."""


_READ: Final = ("get", "list", "watch")

RIGHTS: Final = (
    Right(Place.RUNS, GROUP, PLURAL, ("list", "watch", "delete"), "Follow runs; delete one whose TTL has passed."),
    Right(Place.RUNS, GROUP, f"{PLURAL}/status", ("update",), "Report what became of a run."),
    Right(
        Place.RUNS,
        GROUP,
        f"{PLURAL}/finalizers",
        ("update",),
        "Own objects with blockOwnerDeletion where an admission plugin checks that.",
        value="rbac.ownerReferencesPermissionEnforcement",
    ),
    Right(
        Place.RUNS,
        "",
        "pods",
        (*_READ, "create", "patch", "delete"),
        "Worker pods; a patch tells a queue that a group is given up, and takes a pod of a lost node out of the queue.",
    ),
    Right(
        Place.RUNS,
        "",
        "configmaps",
        (*_READ, "create", "patch"),
        "Frozen stage configurations and the ledger. Informers select them by label; RBAC cannot.",
    ),
    Right(
        Place.RUNS,
        "",
        "secrets",
        ("create",),
        "The signing key of each run, which its pods mount. Created only: the operator reads no Secret there, its own "
        "included.",
    ),
    Right(
        Place.RUNS,
        "networking.k8s.io",
        "networkpolicies",
        (*_READ, "create", "patch"),
        "One for the worker pods of each run; a patch when its rules change.",
        value="networkPolicy.enabled",
    ),
    Right(Place.RUNS, "", "events", ("create",), "Tell people what was done and why."),
    Right(Place.CLUSTER, GROUP, BUDGET_PLURAL, ("list", "watch"), "Follow the budgets of teams."),
    Right(Place.CLUSTER, GROUP, f"{BUDGET_PLURAL}/status", ("update",), "Tell what was spent and which rules hold."),
    Right(Place.CLUSTER, "", "nodes", ("list", "watch"), "See nodes that are lost, drained or about to be reclaimed."),
    Right(
        Place.CLUSTER,
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        ("get", "patch"),
        "Write the certificate authority of the webhook into its registration.",
        only='include "videotrain.clusterName" .',
        only_name="the release's own",
        value="webhook.enabled",
    ),
    Right(
        Place.CLUSTER,
        "authentication.k8s.io",
        "tokenreviews",
        ("create",),
        "Learn whose bearer token a request for /metrics carries.",
        value="monitoring.authorization",
    ),
    Right(
        Place.CLUSTER,
        "authorization.k8s.io",
        "subjectaccessreviews",
        ("create",),
        "Learn whether that user may read /metrics.",
        value="monitoring.authorization",
    ),
    Right(
        Place.RELEASE,
        "",
        "configmaps",
        ("get", "list", "create", "patch"),
        "Keep the bill of each run, which outlives the run and its namespace, and count it for the budget of its team; "
        "read the defaults for runs.",
    ),
    Right(Place.RELEASE, "", "events", ("create",), "Tell that the defaults for runs cannot be read."),
    Right(
        Place.RELEASE,
        "coordination.k8s.io",
        "leases",
        ("get", "update"),
        "Elect the replica that leads. The chart creates the Lease, since a right to create cannot name one object.",
        only='include "videotrain.fullname" .',
        only_name="the release's own",
    ),
    Right(
        Place.RELEASE,
        "",
        "secrets",
        ("get", "update"),
        "Keep the webhook's certificate. The chart creates the Secret, for the same reason, or cert-manager.",
        only='include "videotrain.webhookSecretName" .',
        only_name="the release's own",
        value="webhook.enabled",
    ),
    Right(
        Place.RELEASE,
        "",
        "secrets",
        ("get", "update"),
        "Keep the master key of which the signing keys of the runs are made. The chart creates the Secret, too.",
        only='include "videotrain.keyName" .',
        only_name="the release's own",
    ),
)


def template() -> str:
    """Named templates of the rules of each place."""
    lines = [
        f"{{{{/* Generated by `{_COMMAND}` from api/videotrain_api/generate/chart_permissions.py; do not edit. */}}}}"
    ]
    for place in Place:
        lines.append(f'{{{{- define "videotrain.permissions.{place}" -}}}}')
        for right in RIGHTS:
            lines += _rule(right) if right.place is place else []
        lines.append("{{- end }}")
    return "\n".join([*lines, ""])


def _rule(right: Right) -> Iterator[str]:
    if right.value:
        yield f"{{{{- if .Values.{right.value} }}}}"
    yield f'- apiGroups: ["{right.group}"]'
    yield f'  resources: ["{right.resource}"]'
    if right.only:
        yield f"  resourceNames: [{{{{ {right.only} | quote }}}}]"
    yield "  verbs: [" + ", ".join(f'"{verb}"' for verb in right.verbs) + "]"
    if right.value:
        yield "{{- end }}"


def reference() -> str:
    """Text of docs/reference/permissions.md: each right with the reason why it is needed."""
    head = f"""<!-- Generated by `{_COMMAND}`; do not edit. -->

# Permissions

What the operator's service account may do. It has no right to read Secrets of users, to touch Jobs, Deployments or
anything that is not listed. Worker pods hold no credentials of Kubernetes: none are mounted, and no pod template can
change that as long as the chart's value `podTemplate.policy` is not `any`
([what templates may do](../how-to/isolate-workers.md#what-pod-templates-may-do)).

With the chart's value `namespaces` empty, the rights on the namespaces of runs hold everywhere (a ClusterRole), in
`kube-system` too, since RBAC can leave out neither a namespace nor an object without a label. Else they are Roles in
the named namespaces, and the operator can touch nothing in any other.
`kubectl auth can-i --list --as system:serviceaccount:NAMESPACE:NAME` shows the
same table, besides what Kubernetes lets every account do.

| Where | API group | Resource | Verbs | Only | Needs value | Why |
|---|---|---|---|---|---|---|"""
    return "\n".join([head, *map(_row, RIGHTS), "", _USERS])


def _row(right: Right) -> str:
    verbs = ", ".join(right.verbs)
    value = f"`{right.value}`" if right.value else ""
    place, group = _PLACES[right.place], right.group or "core"
    return f"| {place} | {group} | `{right.resource}` | {verbs} | {right.only_name} | {value} | {right.why} |"


_USERS: Final = f"""## Users

With `rbac.aggregate` the stock cluster roles learn about runs; bind them as usual.

| Role | `{PLURAL}` | `{PLURAL}/status` | `{PLURAL}/scale` | `{BUDGET_PLURAL}` |
|---|---|---|---|---|
| view | get, list, watch | get | get | get, list, watch |
| edit, admin | get, list, watch, create, update, patch, delete, deletecollection | get | get, update, patch | as view |

`{BUDGET_PLURAL}` are cluster-wide: the right to read them needs a ClusterRoleBinding, and who administers the cluster
writes them.

Whoever may create a run may run any image with any service account of that namespace, as with a Job; unlike with a Job
its pods get no token of that account, and keep to the chart's `podTemplate.policy`. They can mount any Secret of the
namespace, and with it whatever credentials somebody has put there.
"""
