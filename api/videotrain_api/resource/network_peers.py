"""What network policies are made of, in the chart's values and in the policies of runs."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from videotrain_api.schema import patterned

Peer = dict[str, Any]
"""A NetworkPolicyPeer of Kubernetes."""
Port = Annotated[int, Field(ge=1, le=65535)]
Cidr = Annotated[str, patterned(r"^[0-9a-fA-F:.]+/[0-9]{1,3}$", "a CIDR, such as 169.254.170.23/32")]

DNS_PEERS: Final[list[Peer]] = [
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    },
    {"ipBlock": {"cidr": "169.254.20.10/32"}},
]
"""Who answers DNS in most clusters: the cluster's own, and NodeLocal DNSCache."""
