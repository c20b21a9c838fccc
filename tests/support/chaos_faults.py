"""What is done to a run, and what is expected of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from support.chaos_lane import PHASES, Lane
from support.chaos_rig import Rig, until

OUTAGE_SECONDS = 60.0
SPOT = {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Outage:
    """Something that all lanes share is gone for a while."""

    begin: Callable[[Rig], Awaitable[None]]
    seconds: float
    end: Callable[[Rig], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    title: str
    cost: Literal["none", "graceful", "hard"]
    """No restart, a restart that loses no step, or one that loses at most the steps since the last checkpoint."""
    inject: Callable[[Lane], Awaitable[None]]
    """Breaks one lane; of an outage, only what is done to the lane itself."""
    cause: str = ""
    """The counter of status.restarts that rises by one."""
    event: str = ""
    """A regular expression for the event that a person sees."""
    heal: Callable[[Lane], Awaitable[None]] | None = None
    outage: Outage | None = None
    """What is done once for all lanes."""
    at_once: int = len(PHASES)
    """How many lanes meet it at the same time. Half of all nodes is more than the operator believes to be lost."""


def follower(lane: Lane) -> str:
    """The member that does not lead."""
    return f"{lane.name}-w1"


def leader(lane: Lane) -> str:
    """The member of rank 0."""
    return f"{lane.name}-w0"


def container_ends(code: int, reason: str, who: Callable[[Lane], str] = follower) -> Callable[[Lane], Awaitable[None]]:
    """The container of a pod ends so."""

    async def inject(lane: Lane) -> None:
        details = {"namespace": lane.name, "pod": who(lane), "exitCode": code, "reason": reason}
        await asyncio.to_thread(lane.rig.nodes.order, "kill-pod", **details)

    return inject


async def evict(lane: Lane) -> None:
    """What `kubectl drain` does to a pod."""
    head = {"name": follower(lane), "namespace": lane.name}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": head}
    await lane.rig.client.create_subresource("Pod", lane.name, follower(lane), "eviction", body)


async def delete_pod(lane: Lane) -> None:
    """kubectl delete pod."""
    await lane.rig.client.delete("Pod", lane.name, follower(lane))


async def delete_node(lane: Lane) -> None:
    """kubectl delete node."""
    await lane.rig.client.delete("Node", "", lane.node)


async def cut_power(lane: Lane) -> None:
    """The machine is off."""
    await asyncio.to_thread(lane.rig.nodes.order, "kill-node", node=lane.node)


async def restore_node(lane: Lane) -> None:
    """The machine is back, after the cluster has noticed that it was away."""
    await until(lambda: not lane.rig.is_ready(lane.node), f"node {lane.node} is not ready", lane.explain)
    await asyncio.to_thread(lane.rig.nodes.order, "restore-node", node=lane.node)
    await until(lambda: lane.rig.is_ready(lane.node), f"node {lane.node} is ready", lane.explain)


async def drain(lane: Lane) -> None:
    """kubectl drain: cordon, then evict."""
    await _cordon(lane, True)
    await evict(lane)


async def uncordon(lane: Lane) -> None:
    """kubectl uncordon."""
    await _cordon(lane, False)


async def _cordon(lane: Lane, value: bool) -> None:
    patch = {"spec": {"unschedulable": value or None}}
    await lane.rig.client.patch("Node", "", lane.node, patch, manager="chaos")


async def announce_reclaim(lane: Lane) -> None:
    """The cloud takes the node back in two minutes, and its handler says so by a taint."""
    node = await lane.rig.client.get("Node", "", lane.node)
    taints = [*(node["spec"].get("taints") or []), SPOT]
    patch = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": taints}}
    await lane.rig.client.patch("Node", "", lane.node, patch, manager="chaos")


async def remove_taint(lane: Lane) -> None:
    """Another machine under the old name."""
    node = await lane.rig.client.get("Node", "", lane.node)
    taints = [taint for taint in node["spec"].get("taints") or [] if taint["key"] != SPOT["key"]]
    patch = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": taints or None}}
    await lane.rig.client.patch("Node", "", lane.node, patch, manager="chaos")


async def stop_worker(lane: Lane) -> None:
    """The process is there and does nothing."""
    os.kill(lane.worker(follower(lane)), signal.SIGSTOP)


async def kill_agent(lane: Lane) -> None:
    """The process that looks after the workers dies."""
    os.kill(lane.agent(follower(lane)), signal.SIGKILL)


async def delete_config_maps(lane: Lane) -> None:
    """Both: the frozen configuration and the ledger."""
    maps = [name for namespace, name in lane.rig.views["ConfigMap"].objects if namespace == lane.name]
    for name in maps:
        if name.startswith(f"{lane.name}-"):
            await lane.rig.client.delete("ConfigMap", lane.name, name)


async def nothing(lane: Lane) -> None:
    """The lane itself is left alone."""


async def server_goes(rig: Rig) -> None:
    """The API server is gone and its connections are broken."""
    rig.switched_off.add("kube-apiserver")
    await asyncio.to_thread(rig.plane.kill, "kube-apiserver")


async def server_comes(rig: Rig) -> None:
    """It is back at its address."""
    await asyncio.to_thread(rig.plane.start, "kube-apiserver")
    rig.switched_off.clear()


async def leader_goes(rig: Rig) -> None:
    """The replica that leads gets no chance to release its lease; another one is started in its place."""
    old = await until(rig.operators.leader, "a replica leads", rig.operators.tail)
    await asyncio.to_thread(rig.operators.end, old, signal.SIGKILL)
    rig.operators.start()


async def operators_go(rig: Rig) -> None:
    """Nobody reconciles."""
    await asyncio.to_thread(rig.operators.end_all)


async def operators_come(rig: Rig) -> None:
    """Somebody leads."""
    rig.operators.start()
    await until(rig.operators.leader, "a replica leads", rig.operators.tail)


FAULTS = {
    "exit-1": Fault("pod exit 1", "hard", container_ends(1, "Error"), "application", r"PodFailed: pod .*exit code 1\b"),
    "exit-137": Fault(
        "pod exit 137", "hard", container_ends(137, "Error"), "infrastructure", r"PodFailed: pod .*exit code 137"
    ),
    "oom": Fault("OOMKilled", "hard", container_ends(137, "OOMKilled"), "application", r"PodFailed: pod .*OOMKilled"),
    "evicted": Fault("evicted", "graceful", evict, "preemption", r"Preempted: leaving: .*EvictionByEvictionAPI"),
    "node-deleted": Fault(
        "node deleted", "hard", delete_node, "infrastructure", r"NodeLost: node .* is lost: the node was deleted",
        heal=restore_node, at_once=3,
    ),
    "node-not-ready": Fault(
        "node NotReady", "hard", cut_power, "infrastructure",
        r"NodeLost: node .* is lost: the node is not ready|WorkerFailed: pod .* does not answer and its peers lost it",
        heal=restore_node, at_once=3,
    ),
    "drain": Fault(
        "drain", "graceful", drain, "preemption", r"Preempted: leaving: .*(cordoned|EvictionByEvictionAPI)",
        heal=uncordon,
    ),
    "spot": Fault(
        "spot taint", "graceful", announce_reclaim, "preemption", r"Preempted: leaving: .*taint aws-node",
        heal=remove_taint,
    ),
    "api-server-down": Fault(
        "API server down 60 s", "none", nothing, outage=Outage(server_goes, OUTAGE_SECONDS, server_comes)
    ),
    "leader-killed": Fault("operator leader SIGKILLed", "none", nothing, outage=Outage(leader_goes, 0, operators_come)),
    "operators-down": Fault(
        "both operators down 60 s", "none", nothing, outage=Outage(operators_go, OUTAGE_SECONDS, operators_come)
    ),
    "hang": Fault("hang", "hard", stop_worker, "hang", r"Hang: (step \d+ was the last for|no step within)"),
    "agent-killed": Fault("agent killed", "hard", kill_agent, "infrastructure", r"PodFailed: pod .*exit code 137"),
    "leader-pod-killed": Fault(
        "leader pod killed", "hard", container_ends(137, "Error", leader), "infrastructure",
        r"PodFailed: pod .*-w0 .*exit code 137",
    ),
    "config-map-deleted": Fault(
        "config map deleted by hand", "none", delete_config_maps, event=r"LedgerRebuilt: config map .* was deleted"
    ),
    "pod-deleted": Fault(
        "pod deleted by hand", "graceful", delete_pod, "preemption", r"Preempted: leaving: .*it is being deleted"
    ),
}  # fmt: skip
"""The rows after which a run goes on. The last row, a deleted namespace, is a test of its own."""
