"""Who may connect to whom under network policies: their meaning as the API reference of Kubernetes gives it.

A pod that a policy selects is isolated in the policy's directions: what no rule of any such policy allows is refused. A
pod that none selects takes and makes every connection. A connection needs both sides: the egress of its source and the
ingress of its target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Json = dict[str, Any]
_PEER = {"podSelector", "namespaceSelector", "ipBlock"}
_RULE = {"ports", "from", "to"}


@dataclass(frozen=True)
class Endpoint:
    """A pod, or with no namespace an address outside of the cluster."""

    address: str
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports of its containers."""


@dataclass(frozen=True)
class Network:
    """Policies and the labels of namespaces, which carry their names as Kubernetes labels them."""

    policies: tuple[Json, ...]
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def allows(self, source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
        """Whether source may connect to a port of target."""
        out = self._side("Egress", "egress", "to", source, target, target, port, protocol)
        return out and self._side("Ingress", "ingress", "from", target, source, target, port, protocol)

    def _side(
        self,
        direction: str,
        rules: str,
        peers: str,
        isolated: Endpoint,
        other: Endpoint,
        target: Endpoint,
        port: int,
        protocol: str,
    ) -> bool:
        bound = [p for p in self.policies if self._selects(p, isolated) and direction in _types(p["spec"])]
        if not bound:
            return True
        return any(
            self._rule(policy, rule, peers, other) and _port(rule.get("ports") or [], target, port, protocol)
            for policy in bound
            for rule in policy["spec"].get(rules) or []
        )

    def _selects(self, policy: Json, pod: Endpoint) -> bool:
        here = pod.namespace is not None and policy["metadata"]["namespace"] == pod.namespace
        return here and matches(policy["spec"].get("podSelector") or {}, pod.labels)

    def _rule(self, policy: Json, rule: Json, peers: str, other: Endpoint) -> bool:
        assert set(rule) <= _RULE, rule
        found = rule.get(peers) or []
        return not found or any(self._peer(policy, peer, other) for peer in found)

    def _peer(self, policy: Json, peer: Json, other: Endpoint) -> bool:
        assert peer and set(peer) <= _PEER, peer
        if "ipBlock" in peer:
            assert set(peer) == {"ipBlock"}, "an ipBlock stands alone"
            block, address = peer["ipBlock"], ip_address(other.address)
            outside = any(address in ip_network(cidr) for cidr in block.get("except") or [])
            return address in ip_network(block["cidr"]) and not outside
        if other.namespace is None:
            return False
        if "namespaceSelector" in peer:
            labels = {"kubernetes.io/metadata.name": other.namespace, **self.namespaces.get(other.namespace, {})}
            here = matches(peer["namespaceSelector"], labels)
        else:
            here = other.namespace == policy["metadata"]["namespace"]
        return here and matches(peer.get("podSelector") or {}, other.labels)


def matches(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector meets labels; an empty one meets everything."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}, selector
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(_expression(item, labels) for item in selector.get("matchExpressions") or [])


def _expression(item: Json, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(item["key"]), item.get("values") or []
    return {
        "In": value is not None and value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[item["operator"]]


def _types(spec: Json) -> Iterable[str]:
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def _port(ports: list[Json], target: Endpoint, port: int, protocol: str) -> bool:
    for item in ports:
        first = item.get("port", 1)
        first = target.ports.get(first, -1) if isinstance(first, str) else first
        last = item.get("endPort", first) if "port" in item else 65535
        if item.get("protocol", "TCP") == protocol and first <= port <= last:
            return True
    return not ports
