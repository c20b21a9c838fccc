"""The kinds that the operator reads or writes, and where the API server serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from videotrain_api.vocabulary import API_VERSION, BUDGET_KIND, BUDGET_PLURAL, GROUP, KIND, KUEUE, PLURAL


@dataclass(frozen=True)
class Kind:
    """One resource of the API."""

    name: str
    group_version: str
    """`v1`, or `GROUP/VERSION`."""
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of a collection, an object or a subresource; every namespace's collection if none is given."""
        root = f"/api/{self.group_version}" if self.group_version == "v1" else f"/apis/{self.group_version}"
        place = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return root + place + "".join(f"/{part}" for part in (self.plural, name, subresource) if part)


_ALL: Final = (
    Kind(KIND, API_VERSION, PLURAL),
    Kind(BUDGET_KIND, API_VERSION, BUDGET_PLURAL, namespaced=False),
    Kind("Pod", "v1", "pods"),
    Kind("Service", "v1", "services"),
    Kind("ConfigMap", "v1", "configmaps"),
    Kind("Secret", "v1", "secrets"),
    Kind("ServiceAccount", "v1", "serviceaccounts"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Kind("Event", "v1", "events"),
    Kind("Namespace", "v1", "namespaces", namespaced=False),
    Kind("Node", "v1", "nodes", namespaced=False),
    Kind("Lease", "coordination.k8s.io/v1", "leases"),
    Kind("Deployment", "apps/v1", "deployments"),
    Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False),
    Kind(
        "ValidatingWebhookConfiguration",
        "admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
        namespaced=False,
    ),
    Kind("TokenReview", "authentication.k8s.io/v1", "tokenreviews", namespaced=False),
    Kind("SubjectAccessReview", "authorization.k8s.io/v1", "subjectaccessreviews", namespaced=False),
    Kind("Workload", f"{KUEUE}/v1beta2", "workloads"),
)
KINDS: Final = {kind.name: kind for kind in _ALL}
RUN: Final = KINDS[KIND]
assert RUN.group_version.startswith(GROUP)
