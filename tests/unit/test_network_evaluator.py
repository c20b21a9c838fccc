"""The evaluator of network policies that tests rely on, by the examples of Kubernetes' documentation of them."""

from __future__ import annotations

from typing import Any

import pytest
from support.network_policy import Endpoint, Network, matches

DB = Endpoint("10.0.0.1", "default", {"role": "db"}, {"sql": 6379})
FRONT = Endpoint("10.0.0.2", "default", {"role": "frontend"})
PROJECT = Endpoint("10.0.0.3", "project", {"role": "frontend"})
LABELS = {"project": {"project": "myproject"}}


def policy(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "default"}, "spec": {"podSelector": {}} | spec}


def network(*policies: dict[str, Any]) -> Network:
    return Network(policies, LABELS)


def test_without_a_policy_all_is_open_and_with_an_empty_one_all_is_closed() -> None:
    assert network().allows(FRONT, DB, 6379)
    assert not network(policy(policyTypes=["Ingress"])).allows(FRONT, DB, 6379)
    assert network(policy(policyTypes=["Ingress"])).allows(DB, PROJECT, 1), "egress is not meant"
    assert not network(policy(policyTypes=["Egress"])).allows(DB, PROJECT, 1)
    assert network(policy(ingress=[{}])).allows(PROJECT, DB, 1)
    assert network(policy(podSelector={"matchLabels": {"role": "web"}})).allows(FRONT, DB, 1), "not selected"


def test_policies_add_up() -> None:
    closed, opened = policy(), policy(ingress=[{"from": [{"podSelector": {"matchLabels": {"role": "frontend"}}}]}])
    assert network(closed, opened).allows(FRONT, DB, 1)
    assert not network(closed, opened).allows(PROJECT, DB, 1), "a bare podSelector means the policy's namespace"


def test_two_selectors_in_one_peer_are_both_needed_and_two_peers_are_not() -> None:
    space, role = {"matchLabels": {"project": "myproject"}}, {"matchLabels": {"role": "client"}}
    both = policy(ingress=[{"from": [{"namespaceSelector": space, "podSelector": role}]}])
    either = policy(ingress=[{"from": [{"namespaceSelector": space}, {"podSelector": role}]}])
    assert not network(both).allows(PROJECT, DB, 1)
    assert network(either).allows(PROJECT, DB, 1)
    assert not network(either).allows(FRONT, DB, 1)


def test_blocks_have_holes() -> None:
    block = {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}}
    walls = network(policy(ingress=[{"from": [block]}]))
    assert walls.allows(Endpoint("172.17.2.1"), DB, 1)
    assert not walls.allows(Endpoint("172.17.1.1"), DB, 1) and not walls.allows(Endpoint("2001:db8::1"), DB, 1)


@pytest.mark.parametrize(("port", "allowed", "refused"), [
    ({"port": 6379}, [(6379, "TCP")], [(6379, "UDP"), (6380, "TCP")]),
    ({"port": "sql"}, [(6379, "TCP")], [(6380, "TCP")]),
    ({"port": 32000, "endPort": 32768}, [(32000, "TCP"), (32768, "TCP")], [(31999, "TCP"), (32769, "TCP")]),
    ({"protocol": "UDP"}, [(1, "UDP"), (65535, "UDP")], [(1, "TCP")]),
])  # fmt: skip
def test_ports(port: Any, allowed: list[tuple[int, str]], refused: list[tuple[int, str]]) -> None:
    walls = network(policy(ingress=[{"ports": [port]}]))
    assert all(walls.allows(FRONT, DB, *each) for each in allowed)
    assert not any(walls.allows(FRONT, DB, *each) for each in refused)


@pytest.mark.parametrize(("operator", "values", "met"), [
    ("In", ["a", "b"], [{"k": "a"}]), ("NotIn", ["a"], [{"k": "b"}, {}]), ("Exists", [], [{"k": "x"}]),
    ("DoesNotExist", [], [{}]),
])  # fmt: skip
def test_expressions(operator: str, values: list[str], met: list[dict[str, str]]) -> None:
    selector = {"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}
    found = [labels for labels in ({"k": "a"}, {"k": "b"}, {"k": "x"}, {}) if matches(selector, labels)]
    assert all(labels in found for labels in met) and found != [{"k": "a"}, {"k": "b"}, {"k": "x"}, {}]
