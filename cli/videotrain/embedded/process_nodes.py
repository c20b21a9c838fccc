"""Process nodes: each runs the pods that are bound to it as child processes.

One object stands for all nodes of the machine. It watches pods, places waiting ones, starts and stops their processes
and writes what happened into their status, through the cluster interface alone. A real API server has
`videotrain.kubelet.agent` instead, which neither places pods nor owns the truth about them.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from videotrain.clock import parse_time, utc_now
from videotrain.embedded import podstatus
from videotrain.embedded.scheduler import is_ready, place
from videotrain.embedded.store import set_condition
from videotrain.embedded.transaction import stopped
from videotrain.processes.addresses import free_address
from videotrain.processes.devices import NodeDevices
from videotrain.processes.leftovers import end_leftovers
from videotrain.processes.podfiles import (
    ContainerConfigError,
    Lookup,
    command_line,
    container_of,
    demand,
    environment,
    refresh_volumes,
    write_volumes,
)
from videotrain.processes.process import KILLED, Ending, SupervisedProcess, read_ending
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Conflict, NotFound, WatchedCluster

_log = logging.getLogger(__name__)

CONFIRM_SECONDS = 1.0
"""How long a deleted pod stays readable after its end, as the kubelet's cleaning up would keep it: the operator reads
the time of the end from it."""
HEARTBEAT_SECONDS = 1.0
"""How often a node's last sign of life is stored; it bounds the bill of a pod whose end nobody recorded."""


class NodeCluster(WatchedCluster, Protocol):
    """What a node needs beside observing and applying."""

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> Json:
        """Assign a pod to a node."""


@dataclass(frozen=True, kw_only=True)
class NodeShape:
    """What a node offers."""

    allocatable: Mapping[str, int]
    """Extended resources, such as the worker processes that stand for GPUs."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _HostedPod:
    """A bound pod whose process this object answers for."""

    pod: Json
    root: Path
    process: SupervisedProcess | None = None
    task: asyncio.Task[None] | None = None
    stopping: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        return str(self.pod["spec"]["nodeName"])


class ProcessNodes:
    """All nodes of this machine. `recover()` once, then `run()`; no process is left behind it."""

    def __init__(
        self,
        cluster: NodeCluster,
        workdir: Path,
        nodes: Mapping[str, Sequence[str]],
        shapes: Mapping[str, NodeShape],
        namespace: str,
    ) -> None:
        """Nodes of one cluster.

        Args:
            cluster: holds the pods.
            workdir: for their files and logs.
            nodes: names of the nodes, each with the GPUs that its pods share; none for pods on the CPU.
            shapes: what each of them offers to the scheduler.
            namespace: of the pods.
        """
        self._cluster = cluster
        self._workdir = workdir.resolve()
        self._devices = {name: NodeDevices(devices) for name, devices in nodes.items()}
        self._names = list(nodes)
        self._shapes = shapes
        self._namespace = namespace
        self._down: set[str] = set()
        self._hosted: dict[str, _HostedPod] = {}
        self._leaving: set[str] = set()
        self._wake = asyncio.Event()
        self._background: asyncio.TaskGroup | None = None

    @property
    def names(self) -> list[str]:
        """Names of all nodes."""
        return list(self._names)

    async def recover(self) -> None:
        """Take up the working directory: end what an earlier life left, record how its pods ended, register the nodes.

        Afterwards no pod is bound without having ended, so the bill has no gap and nothing runs twice.
        """
        killed = await asyncio.to_thread(end_leftovers, self._workdir / "pods")
        if killed:
            _log.warning("killed %d processes that an earlier run of this working directory left", len(killed))
        for pod in await self._cluster.list("Pod", self._namespace):
            if not stopped(pod):
                await self._record_lost(pod)
        for node in await self._cluster.list("Node", ""):
            if node["metadata"]["name"] not in self._names:
                await self._cluster.delete("Node", "", node["metadata"]["name"], uid=node["metadata"]["uid"])
        for name in self._names:
            await self._register(name)

    async def run(self) -> None:
        """Serve until cancelled; then every process is killed and its end recorded."""
        try:
            async with asyncio.TaskGroup() as group:
                self._background = group
                for kind in ("Pod", "Node", "ConfigMap", "Secret"):
                    group.create_task(self._wake_on(kind))
                group.create_task(self._heartbeat())
                group.create_task(self._serve())
        finally:
            self._background = None
            await self._kill_all()

    async def kill_node(self, name: str) -> None:
        """Cut a node's power: its processes die at once and it is not ready until restored.

        Raises:
            KeyError: there is no such node.
        """
        self._known(name)
        self._down.add(name)
        victims = [hosted for hosted in self._hosted.values() if hosted.node == name]
        for hosted in victims:
            if hosted.process is not None:
                hosted.process.kill()
        await asyncio.gather(*(hosted.task for hosted in victims if hosted.task is not None))
        await self._set_ready(name, "False", "NodePowerLost")

    async def restore_node(self, name: str) -> None:
        """Bring a killed node back, empty.

        Raises:
            KeyError: there is no such node.
        """
        self._known(name)
        self._down.discard(name)
        await self._set_ready(name, "True", "NodeReady")

    def process_of(self, pod_name: str) -> SupervisedProcess | None:
        """The process of a pod by name, while it runs."""
        hosted_pods = [hosted for hosted in self._hosted.values() if hosted.pod["metadata"]["name"] == pod_name]
        return next((hosted.process for hosted in hosted_pods if hosted.process is not None), None)

    def _known(self, name: str) -> None:
        if name not in self._names:
            raise KeyError(f"node {name!r}: the nodes are {', '.join(self._names)}")

    async def _register(self, name: str) -> None:
        shape = self._shapes[name]
        manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": dict(shape.labels)}}
        await self._cluster.apply(manifest)

        def describe(node: Json) -> None:
            amounts = {resource: str(amount) for resource, amount in shape.allocatable.items()}
            node.setdefault("status", {}).update({"allocatable": amounts, "capacity": amounts})
            _beat(node)

        await self._edit_status("Node", "", name, describe)
        await self._set_ready(name, "True", "NodeReady")

    async def _set_ready(self, name: str, status: str, reason: str) -> None:
        await self._edit_status("Node", "", name, lambda node: _set_node_ready(node, status, reason))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for name in self._names:
                if name not in self._down:
                    await self._edit_status("Node", "", name, _beat)

    async def _wake_on(self, kind: str) -> None:
        async for _ in self._cluster.watch(kind, "" if kind == "Node" else self._namespace):
            self._wake.set()

    async def _serve(self) -> None:
        while True:
            self._wake.clear()
            await self._place_waiting()
            lookup = await self._lookup()
            for pod in await self._cluster.list("Pod", self._namespace):
                self._attend(pod, lookup)
            await self._wake.wait()

    async def _place_waiting(self) -> None:
        nodes = [node for node in await self._cluster.list("Node", "") if node["metadata"]["name"] in self._names]
        for waiting in await self._cluster.list("Pod", self._namespace):
            metadata = waiting["metadata"]
            if waiting["spec"].get("nodeName") or "deletionTimestamp" in metadata:
                continue
            node = place(waiting, await self._cluster.list("Pod", self._namespace), nodes)
            try:
                if node is None:
                    await self._mark_unschedulable(metadata["name"], metadata["uid"], nodes)
                else:
                    await self._cluster.bind(self._namespace, metadata["name"], metadata["uid"], node)
            except (Conflict, NotFound) as error:
                _log.debug("pod changed while it was placed, next pass decides: %s", error)

    async def _mark_unschedulable(self, name: str, uid: str, nodes: Sequence[Json]) -> None:
        ready = sum(1 for node in nodes if is_ready(node))
        text = f"no node has room: {ready} of {len(nodes)} nodes are ready, and each holds one pod of a run"
        await self._edit_pod(name, uid, lambda pod: _scheduled_false(pod, text))

    def _attend(self, pod: Json, lookup: Lookup) -> None:
        """Start, update or stop what belongs to one bound pod."""
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") not in self._names:
            return
        if stopped(pod):
            if "deletionTimestamp" in pod["metadata"] and uid not in self._leaving:
                self._leaving.add(uid)
                self._spawn(self._confirm_deletion(pod))
            return
        hosted = self._hosted.get(uid)
        if hosted is None:
            hosted = self._hosted[uid] = _HostedPod(pod, self._root(pod))
            hosted.task = self._spawn(self._host(hosted))
            return
        hosted.pod = pod
        if hosted.process is None:
            return
        refresh_volumes(pod, hosted.root, lookup)
        if "deletionTimestamp" in pod["metadata"] and hosted.stopping is None:
            hosted.stopping = self._spawn(_stop(hosted, hosted.process))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self._background is not None, "pods are served by run()"
        return self._background.create_task(work)

    def _root(self, pod: Json) -> Path:
        return self._workdir / "pods" / f"{pod['metadata']['name']}-{pod['metadata']['uid'][:8]}"

    async def _host(self, hosted: _HostedPod) -> None:
        """The life of one pod on its node."""
        metadata = hosted.pod["metadata"]
        try:
            if "deletionTimestamp" in metadata:
                await self._finish(hosted, _never_started(hosted.pod, "Deleted", "deleted before it was started"))
                return
            hosted.process = await self._launch(hosted)
        except ContainerConfigError as error:
            change = partial(podstatus.waiting, reason="CreateContainerConfigError", message=str(error))
            await self._edit_pod(metadata["name"], metadata["uid"], change)
            del self._hosted[metadata["uid"]]  # the next change of a pod, ConfigMap or Secret tries again
            return
        except OSError as error:
            await self._finish(hosted, _never_started(hosted.pod, "StartError", str(error)))
            return
        await self._serve_until_end(hosted, hosted.process)

    async def _serve_until_end(self, hosted: _HostedPod, process: SupervisedProcess) -> None:
        metadata = hosted.pod["metadata"]
        change = partial(podstatus.running, started_at=process.started_at)
        known = await self._edit_pod(metadata["name"], metadata["uid"], change)
        if known is None or hosted.node in self._down:
            process.kill()
        self._wake.set()
        ending = await process.wait()
        if ending.reason == "SupervisorLost":
            await asyncio.to_thread(end_leftovers, hosted.root, 0.0)
            ending = ending._replace(finished_at=utc_now())
        await self._finish(hosted, ending)

    async def _launch(self, hosted: _HostedPod) -> SupervisedProcess:
        pod = hosted.pod
        metadata = pod["metadata"]
        if not pod["status"].get("podIP"):
            address = free_address(await self._addresses(), _ports(pod))
            change = partial(podstatus.admitted, address=address)
            pod = await self._edit_pod(metadata["name"], metadata["uid"], change) or pod
        lookup = await self._lookup()
        hosted.root.mkdir(parents=True, exist_ok=True)
        logs = self._workdir / "logs"
        logs.mkdir(exist_ok=True)
        write_volumes(pod, hosted.root, lookup)
        wanted = sum(demand(pod, resource) for resource in self._shapes[hosted.node].allocatable)
        env = environment(pod, hosted.root, lookup, self._devices[hosted.node].take(metadata["uid"], wanted))
        return await SupervisedProcess.start(
            command_line(container_of(pod), env),
            env=env,
            cwd=hosted.root,
            log=logs / f"{hosted.root.name}.log",
            exit_file=hosted.root / "exit.json",
        )

    async def _addresses(self) -> set[str]:
        pods = await self._cluster.list("Pod", self._namespace)
        return {str(pod["status"].get("podIP")) for pod in pods if not stopped(pod)}

    async def _lookup(self) -> Lookup:
        found: dict[tuple[str, str], Json] = {}
        for kind in ("ConfigMap", "Secret"):
            for body in await self._cluster.list(kind, self._namespace):
                found[kind, body["metadata"]["name"]] = body
        return lambda kind, name: found.get((kind, name))

    async def _finish(self, hosted: _HostedPod, ending: Ending, lost: bool = False) -> None:
        """Record how a pod ended."""
        metadata = hosted.pod["metadata"]
        if hosted.node in self._devices:  # an earlier life may have had more nodes
            self._devices[hosted.node].give_back(metadata["uid"])
        reason = podstatus.NODE_LOST if lost or hosted.node in self._down else None
        change = partial(podstatus.terminated, ending=ending, pod_reason=reason)
        await self._edit_pod(metadata["name"], metadata["uid"], change)
        self._hosted.pop(metadata["uid"], None)

    async def _confirm_deletion(self, pod: Json) -> None:
        metadata = pod["metadata"]
        await asyncio.sleep(CONFIRM_SECONDS)
        try:
            await self._cluster.delete("Pod", self._namespace, metadata["name"], uid=metadata["uid"], grace_seconds=0)
        except Conflict:
            _log.debug("pod %s is gone, another one has its name", metadata["name"])

    async def _kill_all(self) -> None:
        hosted_pods = [hosted for hosted in self._hosted.values() if hosted.process is not None]
        for hosted in hosted_pods:
            if hosted.process is not None:
                hosted.process.kill()
        for hosted in hosted_pods:
            if hosted.process is not None:
                await self._finish(hosted, await hosted.process.wait(), lost=True)

    async def _record_lost(self, pod: Json) -> None:
        """A pod of an earlier life: it ended with that life, at the latest at its node's last heartbeat."""
        ending = read_ending(self._root(pod) / "exit.json")
        start = podstatus.started_at(pod) or podstatus.bound_at(pod)
        if ending is None:
            end = max(start, await self._last_heartbeat(pod["spec"]["nodeName"]))
            ending = Ending(KILLED, start, end, "Killed", "videotrain was killed; bounded by its node's last heartbeat")
        lost = ending.reason == "Killed"
        hosted = _HostedPod(pod, self._root(pod))
        await self._finish(hosted, ending, lost=lost)

    async def _last_heartbeat(self, node: str) -> str:
        try:
            body = await self._cluster.get("Node", "", node)
        except NotFound:
            return ""  # sorts before every time: the start of the pod is all that is known
        return str(body.get("status", {}).get("lastHeartbeatTime", ""))

    async def _edit_pod(self, name: str, uid: str, change: Callable[[Json], object]) -> Json | None:
        return await self._edit_status("Pod", self._namespace, name, change, uid)

    async def _edit_status(
        self, kind: str, namespace: str, name: str, change: Callable[[Json], object], uid: str | None = None
    ) -> Json | None:
        """Read, change and write a status until nobody has come between; None if the object is gone."""
        while True:
            try:
                body = await self._cluster.get(kind, namespace, name)
                if uid is not None and body["metadata"]["uid"] != uid:
                    return None
                changed = copy.deepcopy(body)
                change(changed)
                version = body["metadata"]["resourceVersion"]
                return await self._cluster.replace_status(kind, namespace, name, changed["status"], version)
            except Conflict:
                continue
            except NotFound:
                return None


async def _stop(hosted: _HostedPod, process: SupervisedProcess) -> None:
    """SIGTERM now, SIGKILL to the whole tree at the deletion deadline, which may move closer meanwhile."""
    process.terminate()
    while True:
        left = (parse_time(hosted.pod["metadata"]["deletionTimestamp"]) - datetime.now(UTC)).total_seconds()
        if left <= 0:
            process.kill()
            return
        done, _ = await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=min(left, 0.5))
        if done:
            return


def _never_started(pod: Json, reason: str, message: str) -> Ending:
    return Ending(128, podstatus.bound_at(pod), utc_now(), reason, message)


def _ports(pod: Json) -> list[int]:
    return [int(port["containerPort"]) for port in container_of(pod).get("ports", [])]


def _scheduled_false(pod: Json, message: str) -> None:
    set_condition(pod, "PodScheduled", "False", "Unschedulable", message)


def _set_node_ready(node: Json, status: str, reason: str) -> None:
    set_condition(node, "Ready", status, reason)


def _beat(node: Json) -> None:
    node["status"]["lastHeartbeatTime"] = utc_now()
