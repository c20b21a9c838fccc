"""Observing: the only reader of the cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from functools import lru_cache
from typing import Any

from videotrain_api.records import AgentProgress, Roster
from videotrain_api.render.names import ledger_name, policy_name, roster_name
from videotrain_api.render.network import stored_policy
from videotrain_api.resource.name_ranges import spelled_out
from videotrain_api.resource.stored_status import implausible
from videotrain_api.schema import Json
from videotrain_api.vocabulary import (
    FROZEN_SPEC_KEY,
    KIND,
    LABEL_INDEX,
    LABEL_RUN,
    LABEL_RUN_UID,
    LEDGER_KEY,
    ROSTER_KEY,
)
from videotrain_operator.accounting.stored_ledger import read_ledger
from videotrain_operator.cluster.agents import Agents, ask_all
from videotrain_operator.cluster.interface import Cluster
from videotrain_operator.cluster.missing import Sought, on_record, owners_of, seek
from videotrain_operator.cluster.podview import gpu_resources, pod_view, unreadable
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.profiles import asked_members
from videotrain_operator.planner.status_backup import kept_config_map


async def observe(
    cluster: Cluster,
    namespace: str,
    name: str,
    agents: Agents,
    departed: Sequence[Json] = (),
    followed_since: datetime | None = None,
    newest: Callable[[Json], Json] = lambda run: run,
    while_asking: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
) -> tuple[Json, Observed]:
    """A snapshot of a run and of everything that belongs to it.

    Args:
        cluster: where to look.
        namespace: namespace of the run.
        name: name of the run.
        agents: asks the worker pods.
        departed: Pod objects as they were when they were deleted, if a watch saw it.
        followed_since: since when a watch sees it; always if None.
        newest: gives the run with the newest status that was computed, which may not be stored yet.
        while_asking: entered while agents are asked.

    Returns:
        The run object as it is stored, and what was seen.

    Raises:
        NotFound: there is no such run.
    """
    # The run first: its resourceVersion guards the status that is written in the end, and the rest can only be newer.
    stored = await cluster.get(KIND, namespace, name)
    run = newest(stored)
    labels = {LABEL_RUN: name, LABEL_RUN_UID: run["metadata"]["uid"]}
    nodes = {node["metadata"]["name"]: node for node in await cluster.list("Node", "")}
    resources = gpu_resources(run)
    listed = await cluster.list("Pod", namespace, labels)
    maps = {item["metadata"]["name"]: item for item in await cluster.list("ConfigMap", namespace, labels)}
    policies = await cluster.list("NetworkPolicy", namespace, labels)
    policy = next((item for item in policies if item["metadata"]["name"] == policy_name(name)), None)
    ledger, roster_map = maps.get(ledger_name(name)), maps.get(roster_name(name))
    roster_text = _text(roster_map, ROSTER_KEY)
    roster = _roster(roster_text, labels[LABEL_RUN_UID])
    key = agents.signing_key(labels[LABEL_RUN_UID])
    text = _text(ledger, LEDGER_KEY)
    read = _parse_ledger(text) if text is not None else None
    recorded = tuple(on_record(name, read, roster if _is_live(run) else None))
    names = {each.name for each in recorded}
    own = [pod for pod in departed if _is_own(pod, labels) or pod["metadata"]["name"] in names]
    found = await seek(cluster, run, listed, own, recorded)
    bodies = [*listed, *found.there]
    pods = tuple(pod_view(pod, nodes, resources) for pod in bodies)
    there = {pod.uid for pod in pods}
    lost = [f"config map {ledger_name(name)}: {LEDGER_KEY}"] if ledger is not None and read is None else []
    if roster is None and roster_text:
        lost.append(f"config map {roster_name(name)}: {ROSTER_KEY}")
    async with while_asking():
        answers = await _ask(agents, key, run, pods, roster)
    return stored, Observed(
        pods=pods,
        agents=answers,
        signing_key=key,
        network_policy=stored_policy(policy.get("spec") or {}) if policy else None,
        config_maps=frozenset(maps),
        frozen_spec=_frozen_spec(run, maps, read),
        departed=tuple(pod_view(pod, nodes, resources) for pod in own if pod["metadata"]["uid"] not in there),
        followed_since=followed_since,
        missing=found.unknown,
        misplaced=_misplaced(bodies, pods, labels, recorded),
        ledger=read,
        roster=roster,
        roster_resource_version=roster_map["metadata"].get("resourceVersion") if roster_map else None,
        ledger_resource_version=ledger["metadata"].get("resourceVersion") if ledger else None,
        unreadable=(*lost, *(text for pod in bodies for text in unreadable(pod))),
    )


def _misplaced(
    bodies: Iterable[Json], pods: Iterable[PodView], labels: Json, recorded: Iterable[Sought]
) -> frozenset[str]:
    """Names of pods of the run whose labels, by which they are found, or whose owner somebody changed."""
    uids = {each.uid for each in recorded} | {None}
    names = {each.name for each in recorded if each.uid is None}
    found = set()
    for body, pod in zip(bodies, pods, strict=True):
        right = _carries(body, labels | {LABEL_INDEX: str(pod.index)})
        owned = labels[LABEL_RUN_UID] in owners_of(body)
        # One that carries our labels and is neither on record nor owned is not taken over.
        if not (right and owned) and (owned or pod.uid in uids or pod.name in names):
            found.add(pod.name)
    return frozenset(found)


def _is_own(body: Json, labels: Json) -> bool:
    """It carries the run's labels or has the run for an owner; somebody may have changed one of these."""
    return _carries(body, labels) or labels[LABEL_RUN_UID] in owners_of(body)


def _carries(body: Json, labels: Json) -> bool:
    return labels.items() <= (body["metadata"].get("labels") or {}).items()


def _is_live(run: Json) -> bool:
    """The newest generation is not on record as ended."""
    generations = (run.get("status") or {}).get("generations")
    newest = generations[-1] if isinstance(generations, list) and generations else None
    return isinstance(newest, dict) and not newest.get("endCause")


def _text(config_map: Json | None, key: str) -> str | None:
    text: str | None = ((config_map or {}).get("data") or {}).get(key)
    return text


def _roster(text: str | None, run_uid: str) -> Roster | None:
    """One that cannot be read or is another run's counts as none, so that it is written again."""
    if not text:
        return None
    try:
        roster = _parse_roster(text)
    except (ValueError, RecursionError):
        return None
    return roster if roster is not None and roster.run_uid == run_uid else None


@lru_cache(maxsize=64)
def _parse_roster(text: str) -> Roster | None:
    """None if nobody can calculate with its numbers or times."""
    roster = Roster.from_wire(json.loads(text))
    return None if implausible(roster) else roster


def _frozen_spec(run: Json, maps: dict[str, Json], ledger: Json | None) -> dict[str, Any] | None:
    name = (run.get("status") or {}).get("configMap") or kept_config_map(ledger)
    text = _text(maps.get(str(name)), FROZEN_SPEC_KEY)
    return _parse(text) if text else None


@lru_cache(maxsize=64)
def _parse(text: str) -> dict[str, Any] | None:
    """None if it is no object of JSON, as if the map were not there."""
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


_parse_ledger = lru_cache(maxsize=64)(read_ledger)


async def _ask(
    agents: Agents, key: bytes, run: Json, pods: Sequence[PodView], roster: Roster | None
) -> dict[str, AgentProgress]:
    """Answers of those who have something to tell: the leader and newcomers, and everybody once the leader stops.

    So have the pods that are asked for a trace.

    Before the first roster no agent can say anything that matters.
    """
    status = run.get("status") or {}
    members = _members(status)
    if not members:
        return {}
    reachable = {pod.name: pod.address for pod in pods if pod.running and pod.address and not pod.node_lost}
    followers = set(members[1:]) - asked_members(roster, members)
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


def _members(status: Json) -> list[str]:
    """Of the newest generation, by rank; none where the status does not tell."""
    generations = status.get("generations")
    newest = generations[-1] if isinstance(generations, list) and generations else None
    members = newest.get("members") if isinstance(newest, dict) else None
    try:
        return spelled_out(members) if isinstance(members, str) else []
    except ValueError:
        return []
