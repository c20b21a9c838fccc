"""The network policy of a run: who reaches its worker pods, and whom they reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pydantic import Field

from videotrain_api.crd.wire import Manifest
from videotrain_api.render.names import metadata, policy_name, run_labels, selector
from videotrain_api.resource.network_peers import DNS_PEERS, Cidr, Peer, Port
from videotrain_api.resource.trainrun import VideoTrainingRun, pools_of
from videotrain_api.schema import ApiModel
from videotrain_api.vocabulary import CONTAINER_WORKER, PORT_AGENT

CREDENTIAL_SERVICES: Final = {
    "0.0.0.0/0": ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32"),
    "::/0": ("fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "fd00:c1::/32"),
}
"""By which range they are cut out of: addresses at which clouds hand the node's identity to whoever asks."""
HTTPS: Final = 443
_PORTS_OF_SCHEMES: Final = {"http": 80, "https": HTTPS}
_ENDPOINT: Final = re.compile(
    r"^(https?)://(?:[^/@]*@)?(\[[^\]]*\]|[^:/?#]+)(?::([0-9]{1,5}))?(?:[/?#]|$)", re.IGNORECASE
)
_SERVICE: Final = re.compile(r"^[a-z0-9-]+(?:\.([a-z0-9-]+)(?:\.svc(?:\.[a-z0-9.-]+)?)?)?\.?$", re.IGNORECASE)
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


class NetworkRules(ApiModel):
    """What a run's network policy says beside what the run itself decides. An empty list allows nothing."""

    operator: list[Peer] = Field(
        default=[
            {
                "namespaceSelector": {},
                "podSelector": {
                    "matchLabels": {"app.kubernetes.io/name": "videotrain", "app.kubernetes.io/component": "operator"}
                },
            }
        ]
    )
    """The operator's pods."""
    metrics: list[Peer] = Field(default=[])
    """Who reads the metrics of agents."""
    dns: list[Peer] = Field(default=DNS_PEERS)
    """Who answers DNS: the cluster's own, and NodeLocal DNSCache."""
    storage_ports: list[Port] = Field(default=[])
    """Ports of object stores beside 443 and those of a run's endpoint."""
    metadata_services: list[Cidr] = Field(default=[])
    """Those of CREDENTIAL_SERVICES that workers may ask after all."""
    ingress: list[dict[str, Any]] = Field(default=[])
    """More rules, in the form of the API."""
    egress: list[dict[str, Any]] = Field(default=[])
    """More rules, in the form of the API."""


def render_network_policy(run: VideoTrainingRun, rules: NetworkRules) -> Manifest:
    """The policy. It meets exactly the pods of this very run, and allows nothing that it does not list."""
    ours: Peer = {"podSelector": {"matchLabels": selector(run)}}
    spec = {
        "podSelector": {"matchLabels": selector(run)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [ours]},
            *_rule("from", [*rules.operator, *rules.metrics], [("TCP", PORT_AGENT)]),
            *rules.ingress,
        ],
        "egress": [
            {"to": [ours]},
            *_rule("to", rules.dns, [("UDP", 53), ("TCP", 53)]),
            *_storage(run, rules),
            *_rule("to", [{"ipBlock": {"cidr": cidr}} for cidr in rules.metadata_services], []),
            *rules.egress,
        ],
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(run, policy_name(run.metadata.name), run_labels(run)),
        "spec": stored_policy(spec),
    }


def stored_policy(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a policy as an API server stores it, so that two can be compared."""
    return {
        "podSelector": spec.get("podSelector") or {},
        "policyTypes": list(spec.get("policyTypes") or []),
        "ingress": [_stored_rule(rule, "from") for rule in spec.get("ingress") or []],
        "egress": [_stored_rule(rule, "to") for rule in spec.get("egress") or []],
    }


def _stored_rule(rule: dict[str, Any], peers: str) -> dict[str, Any]:
    ports = [{"protocol": "TCP"} | port for port in rule.get("ports") or []]
    return ({"ports": ports} if ports else {}) | ({peers: rule[peers]} if rule.get(peers) else {})


def _rule(field: str, peers: list[Peer], ports: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """A rule, unless there are no peers: to the API, none means everybody."""
    if peers:
        yield {"ports": [{"protocol": protocol, "port": port} for protocol, port in ports], field: peers}


def _storage(run: VideoTrainingRun, rules: NetworkRules) -> Iterator[dict[str, Any]]:
    """Object stores have addresses that no selector knows, so every one is open at their ports.

    One in the cluster is called by its service, whose port need not be that of its pods, by which policies go: there,
    all ports of its namespace are open instead.
    """
    ports, namespaces = {HTTPS, *rules.storage_ports}, set()
    for scheme, host, port in filter(None, map(_endpoint, _endpoints(run))):
        ports.add(int(port) if port else _PORTS_OF_SCHEMES[scheme.lower()])
        if service := _SERVICE.match(host):
            namespaces.add(service[1] or run.metadata.namespace)
    blocks = [{"ipBlock": {"cidr": cidr, "except": list(but)}} for cidr, but in CREDENTIAL_SERVICES.items()]
    yield from _rule("to", blocks, [("TCP", port) for port in sorted(ports)])
    names = {"matchExpressions": [_named(sorted(namespaces))]}
    yield from _rule("to", [{"namespaceSelector": names}] if namespaces else [], [])


def _named(namespaces: list[str]) -> dict[str, Any]:
    return {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces}


def _endpoints(run: VideoTrainingRun) -> Iterator[str]:
    """Every URL that may lead to the object store: of the run, else as AWS SDKs read it from the environment."""
    if run.spec.storage.endpoint_url:
        yield run.spec.storage.endpoint_url
    template = run.spec.pod_template.spec if run.spec.pod_template else {}
    workers = [c for c in template.get("containers") or [] if c.get("name") == CONTAINER_WORKER]
    given = [item for container in workers for item in container.get("env") or []]
    pools = [{"name": name, "value": value} for pool in pools_of(run).values() for name, value in pool.env.items()]
    for item in [*pools, *given]:
        if item.get("name") in _ENDPOINT_VARIABLES and isinstance(item.get("value"), str):
            yield item["value"]


def _endpoint(url: str) -> tuple[str, str, str | None] | None:
    found = _ENDPOINT.match(url)
    return (found[1], found[2], found[3]) if found and int(found[3] or 1) in range(1, 65536) else None
