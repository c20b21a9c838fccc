"""Observing: the only reader of the cluster."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from videotrain_api.records import AgentProgress
from videotrain_api.render.names import ledger_name
from videotrain_api.schema import Json
from videotrain_api.vocabulary import FROZEN_SPEC_KEY, KIND, LABEL_RUN, LABEL_RUN_UID, LEDGER_KEY
from videotrain_operator.cluster.agents import Agents, ask_all
from videotrain_operator.cluster.interface import Cluster
from videotrain_operator.cluster.podview import pod_view
from videotrain_operator.planner.observed import Observed, PodView


async def observe(
    cluster: Cluster, namespace: str, name: str, agents: Agents, departed: Sequence[Json] = ()
) -> tuple[Json, Observed]:
    """A snapshot of a run and of everything that belongs to it.

    Args:
        cluster: where to look.
        namespace: namespace of the run.
        name: name of the run.
        agents: asks the worker pods.
        departed: Pod objects as they were when they were deleted, if a watch saw it.

    Returns:
        The run object, and what was seen.

    Raises:
        NotFound: there is no such run.
        ValueError: the ledger cannot be read.
    """
    # The run first: its resourceVersion guards the status that is written in the end, and the rest can only be newer.
    run = await cluster.get(KIND, namespace, name)
    labels = {LABEL_RUN: name, LABEL_RUN_UID: run["metadata"]["uid"]}
    nodes = {node["metadata"]["name"]: node for node in await cluster.list("Node", "")}
    resource = run.get("spec", {}).get("pool", {}).get("gpuResource", "nvidia.com/gpu")
    pods = tuple(pod_view(pod, nodes, resource) for pod in await cluster.list("Pod", namespace, labels))
    maps = {item["metadata"]["name"]: item for item in await cluster.list("ConfigMap", namespace, labels)}
    ledger = maps.get(ledger_name(name))
    key = agents.signing_key(run["metadata"]["uid"])
    return run, Observed(
        pods=pods,
        agents=await _ask(agents, key, run, pods),
        signing_key=key,
        service_uid=next((body["metadata"]["uid"] for body in await cluster.list("Service", namespace, labels)), None),
        config_maps=frozenset(maps),
        frozen_spec=_frozen_spec(run, maps),
        departed=tuple(_own(departed, labels, nodes, resource)),
        ledger=_ledger(ledger),
        ledger_resource_version=ledger["metadata"].get("resourceVersion") if ledger else None,
    )


def _own(pods: Iterable[Json], labels: Json, nodes: Json, resource: str) -> Iterable[PodView]:
    for pod in pods:
        carried = pod["metadata"].get("labels") or {}
        if all(carried.get(key) == value for key, value in labels.items()):
            yield pod_view(pod, nodes, resource)


def _ledger(config_map: Json | None) -> Json | None:
    if config_map is None:
        return None
    text = config_map.get("data", {}).get(LEDGER_KEY, "")
    try:
        data: Json = json.loads(text)
    except json.JSONDecodeError as error:
        name = config_map["metadata"]["name"]
        message = f"config map {name}, key {LEDGER_KEY}, is no JSON ({error}); restore it, or delete it to start anew"
        raise ValueError(message) from error
    return data


def _frozen_spec(run: Json, maps: dict[str, Json]) -> dict[str, Any] | None:
    frozen = maps.get((run.get("status") or {}).get("configMap") or "")
    text = frozen.get("data", {}).get(FROZEN_SPEC_KEY) if frozen else None
    return _parse(text) if text else None


@lru_cache(maxsize=64)
def _parse(text: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(text)
    return data


async def _ask(agents: Agents, key: bytes, run: Json, pods: Sequence[PodView]) -> dict[str, AgentProgress]:
    """Answers of those who have something to tell: the leader and newcomers, and everybody once the leader stops.

    Before the first roster no agent can say anything that matters.
    """
    status = run.get("status") or {}
    members = [str(name) for name in (status.get("generations") or [{}])[-1].get("members") or []]
    if not members:
        return {}
    reachable = {pod.name: pod.address for pod in pods if pod.running and pod.address and not pod.node_lost}
    followers = set(members[1:])
    # Newcomers are asked too: the world grows when they are ready.
    first = await ask_all(
        agents, key, [(name, address) for name, address in reachable.items() if name not in followers]
    )
    leader = first[members[0]].current if members[0] in first else None
    # It trains in the newest generation, and nobody was asked to leave: what the others could tell is known.
    if leader is not None and leader.generation == status.get("generation") and leader.state == "running":
        return first
    return first | await ask_all(
        agents, key, [(name, address) for name, address in reachable.items() if name in followers]
    )
