"""What is reserved and held by no run, from the objects that an operator has in its caches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from videotrain_api.resource.prices import PriceList
from videotrain_api.schema import Json, ManifestError
from videotrain_operator.kube.trim import trim
from videotrain_operator.manager.reserved import reserved_samples

NOW = datetime(2026, 11, 15, tzinfo=UTC)
RESERVED = {"karpenter.sh/capacity-type": "reserved"}
H200 = {"nvidia.com/gpu.product": "NVIDIA-H200"}


def node(name: str, gpus: int = 8, **labels: str) -> Json:
    status = {"allocatable": {"cpu": "96", "nvidia.com/gpu": str(gpus)}, "conditions": []}
    head = {"name": name, "uid": name, "labels": labels}
    return trim({"apiVersion": "v1", "kind": "Node", "metadata": head, "spec": {}, "status": status})


def pod(node: str | None, gpus: int = 8, phase: str = "Running") -> Json:
    limits = {"nvidia.com/gpu": str(gpus), "memory": "1Ti"}
    spec = {"containers": [{"name": "worker", "resources": {"limits": limits}}]} | ({"nodeName": node} if node else {})
    head = {"name": f"on-{node}", "namespace": "ml", "uid": f"on-{node}"}
    return trim({"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": spec, "status": {"phase": phase}})


def told(prices: Json, nodes: list[Json], pods: list[Json]) -> dict[tuple[str, ...], float]:
    found = reserved_samples(PriceList.from_wire(prices), nodes, pods, NOW)
    return {labels: value for _, labels, value in found}


def commitment(name: str = "three-years", gpus: int = 24, **more: Any) -> Json:
    return {"name": name, "nodeLabels": H200, "gpus": gpus, "pricePerGpuHour": "1.50"} | more


def test_what_a_commitment_pays_for_and_no_run_holds() -> None:
    nodes = [node("a", **RESERVED, **H200), node("b", **RESERVED, **H200), node("on-demand", **H200)]
    pods = [pod("a"), pod("b", phase="Succeeded"), pod("on-demand"), pod(None)]
    assert told({"commitments": [commitment()]}, nodes, pods) == {
        ("three-years", "committed"): 24,
        ("three-years", "present"): 16,
        ("three-years", "held"): 8,
        ("three-years", "USD"): 16 * 1.5,
    }


def test_more_than_was_committed_to_is_no_idle_money() -> None:
    nodes = [node(name, **RESERVED, **H200) for name in "abcd"]
    found = told({"commitments": [commitment(gpus=16)]}, nodes, [pod("a"), pod("b"), pod("c")])
    assert found["three-years", "held"] == 24 and found["three-years", "USD"] == 0


def test_reserved_nodes_that_no_commitment_names_cost_what_is_listed() -> None:
    prices = {
        "currency": "EUR",
        "prices": [{"capacity": "spot", "pricePerGpuHour": "1"}, {"capacity": "reserved", "pricePerGpuHour": "2.25"}],
        "commitments": [
            commitment(validTo="2026-11-15T00:00:00Z"),
            commitment("later", validFrom="2026-12-01T00:00:00Z"),
        ],
    }
    nodes = [
        node("a", **RESERVED, **H200),
        node("b", 4, **RESERVED),
        node("spot", **{"karpenter.sh/capacity-type": "spot"}),
    ]
    assert told(prices, nodes, [pod("b", 3)]) == {
        ("none", "committed"): 12,
        ("none", "present"): 12,
        ("none", "held"): 3,
        ("none", "EUR"): 9 * 2.25,
    }


def test_without_anything_reserved_nothing_is_told() -> None:
    assert told({"prices": [{"pricePerGpuHour": "2"}]}, [node("a", **H200)], [pod("a")]) == {}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([commitment(), commitment()], r"commitments\[1\].name: 'three-years' is another's"),
        ([commitment(validFrom="2026-12-01T00:00:00Z", validTo="2026-12-01T00:00:00Z")], r"commitments\[0\].validTo"),
        ([commitment(gpus=0)], "gpus"),
    ],
)
def test_a_wrong_commitment_is_refused_and_named(wrong: list[Json], words: str) -> None:
    with pytest.raises(ManifestError, match=words):
        PriceList.from_wire({"commitments": wrong})
