"""Runs whose pods a real Kueue admits, on fake nodes with simulated agents, and what is seen of both."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from scale.agents import Crowd, Pace, SimulatedAgent
from support.audit import AuditedControlPlane, Json
from support.chaos_rig import View, until
from support.controlplane import OPERATOR
from support.kueue import Kueue
from support.operator_bench import Bench
from support.planner_builders import manifest, train_stage
from support.rights import KEY_SECRET

from videotrain.controlplane.commands import KWOK, Layout
from videotrain.controlplane.settings import Kwok, Settings
from videotrain_api.vocabulary import KIND, LABEL_RUN, LABEL_RUN_UID, PORT_AGENT, SIGNING_KEY
from videotrain_operator.kube.client import KubeClient
from videotrain_operator.kube.informer import Watch

GPUS = 8
"""Of each pod, and of each node."""
POOL = "h200"
STAGES = Path(__file__).with_name("graceful_stages.yaml")
QUEUES = "/apis/kueue.x-k8s.io/v1beta2"
GROUP = "kueue.x-k8s.io/pod-group-name"
SECONDS = 180.0
"""Anything takes at most so long on a busy machine."""
PACE = Pace(start_seconds=0.2, step_seconds=0.5)


class GracefulPlane(AuditedControlPlane):
    """A control plane whose fake nodes end pods as a kubelet does, and whose pod addresses can be listened on."""

    def __init__(self, directory: Path) -> None:
        pods = f"127.{random.randint(160, 250)}.0.0/16"
        super().__init__(directory, Settings(kwok=Kwok(pod_range=pods)), [OPERATOR])

    def _arguments(self, name: str, layout: Layout) -> list[str]:
        if name == KWOK:
            (options, runs, *_) = (self.directory / "stages.yaml").read_text().split("\n---\n")
            (self.directory / "stages.yaml").write_text("\n---\n".join((options, runs, STAGES.read_text())))
        return super()._arguments(name, layout)


class Agents:
    """An agent at the address of each pod that runs."""

    def __init__(self) -> None:
        self.crowd = Crowd(PACE, b"")
        self._runner: web.AppRunner
        self._sites: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Get ready to serve."""
        app = web.Application()
        app.add_routes(self.crowd.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()

    async def stop(self) -> None:
        """Serve no more."""
        await asyncio.gather(*self._sites.values())
        await self._runner.cleanup()

    def see(self, body: Json, deleted: bool) -> None:
        """A pod came, changed or went."""
        head, status, now = body["metadata"], body.get("status") or {}, datetime.now(UTC)
        address = status.get("podIP")
        if address is None or LABEL_RUN not in (head.get("labels") or {}):
            return
        if deleted or status.get("phase") != "Running":
            self.crowd.order({"gone": address, "uid": head["uid"]}, now)
            return
        pod = {"name": head["name"], "uid": head["uid"], "address": address, "run": head["labels"][LABEL_RUN_UID]}
        self.crowd.order({"pod": pod}, now)
        if "deletionTimestamp" in head:
            self.crowd.agents[address].leave(now)
        if address not in self._sites:
            self._sites[address] = asyncio.create_task(self._listen(address))

    async def _listen(self, address: str) -> None:
        await web.TCPSite(self._runner, address, PORT_AGENT).start()

    def step(self, run: str) -> int:
        """The step that the workers of a run have done last."""
        agents = [agent.progress(datetime.now(UTC)) for agent in self._of(run)]
        return max((agent.current.step for agent in agents if agent.current), default=0)

    def finish(self, run: str) -> None:
        """The workers of a run complete their stage."""
        for agent in self._of(run):
            agent.finish(datetime.now(UTC))

    def _of(self, run: str) -> list[SimulatedAgent]:
        return [agent for agent in self.crowd.agents.values() if agent.pod.startswith(f"{run}-w")]


class QueueBench(Bench):
    """One namespace with a queue, the operator that serves it, and agents."""

    kueue: Kueue

    def __init__(self, plane: AuditedControlPlane, client: KubeClient, namespace: str, folder: Path) -> None:
        super().__init__(plane, client, namespace, folder)
        self.views["Workload"] = View("Workload")
        self.agents = Agents()
        self.views["Pod"].listeners.append(self._see_agent_pod)
        self.graces: dict[str, int] = {}
        """Seconds that each deleted pod was given, by uid."""

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Agents answer, objects are watched, and an operator serves; all of them end with it."""
        await self.agents.start()
        watches = [Watch(self.client, kind, view, starting=True) for kind, view in self.views.items()]
        watching = [asyncio.create_task(watch.run()) for watch in watches]
        try:
            await self.start(replicas=1)
            yield
        finally:
            if hasattr(self, "operators"):
                self.operators.end_all()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await self.agents.stop()

    async def start(self, *flags: str, **options: Any) -> None:
        """Start operators, and give their key to the agents."""
        await super().start(*flags, **options)
        path = f"/api/v1/namespaces/{self.namespace}/secrets/{KEY_SECRET}"
        secret = await asyncio.to_thread(self.plane.api().get, path)
        self.agents.crowd.master_key = base64.b64decode(secret["data"][SIGNING_KEY])

    def _see_agent_pod(self, body: Json, deleted: bool) -> None:
        if body["metadata"]["namespace"] != self.namespace:
            return
        self.agents.see(body, deleted)
        head = body["metadata"]
        if "deletionTimestamp" in head and not deleted:
            self.graces.setdefault(head["uid"], head["deletionGracePeriodSeconds"])

    async def set_quota(self, nodes: int) -> None:
        """Let the namespace's queue admit pods for so many nodes."""
        await asyncio.to_thread(self._apply_queue, nodes * GPUS)

    def _apply_queue(self, gpus: int) -> None:
        api, name = self.plane.api(), self.namespace
        for item in queue_objects(name, gpus):
            plural = {"ResourceFlavor": "resourceflavors", "ClusterQueue": "clusterqueues"}.get(item["kind"])
            place = plural or f"namespaces/{name}/localqueues"
            api.apply(f"{QUEUES}/{place}/{item['metadata']['name']}", item, "test")
        for priority, value in (("low", 10), ("high", 100)):
            body = {"metadata": {"name": priority}, "value": value, "description": ""}
            head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass"}
            api.apply(f"{QUEUES}/workloadpriorityclasses/{priority}", head | body, "test")

    async def submit(self, name: str, nodes: int | Json, priority: str | None = None, **spec: Any) -> None:
        """Create a run in the queue."""
        bounds = nodes if isinstance(nodes, dict) else {"min": nodes, "max": nodes}
        queue = {"name": "team"} | ({"priorityClass": priority} if priority else {})
        await self.client.create(queued_run(name, self.namespace, nodes=bounds, queue=queue, **spec), "test")

    async def clear(self) -> None:
        """Delete every run, wait until Kueue and the fake nodes have let go of its pods, and delete the namespace."""
        for name in self._names():
            await self.client.delete(KIND, self.namespace, name)
        kinds = {KIND, "Pod", "Workload"}
        await self.waits_for(lambda: not kinds & {kind for kind, _ in self.left()}, "no run is left")
        await self.client.delete("Namespace", "", self.namespace)

    def phase(self, name: str) -> str:
        """One word about a run."""
        return str(self.status(name).get("phase", ""))

    def workloads(self, run: str | None = None) -> list[Json]:
        """Kueue's objects about the runs of the namespace."""
        ours = [body for (place, _), body in self.views["Workload"].objects.items() if place == self.namespace]
        return [body for body in ours if run is None or body["metadata"]["name"].startswith(f"{run}-")]

    def workload_is(self, run: str, type_: str, status: str = "True") -> Json | None:
        """A condition of a run's only Workload."""
        found = [c for body in self.workloads(run) for c in (body.get("status") or {}).get("conditions") or []]
        return next((c for c in found if (c["type"], c["status"]) == (type_, status)), None)

    def gated(self, run: str) -> list[str]:
        """Its pods that the queue holds back."""
        return sorted(pod["metadata"]["name"] for pod in self.pods(run) if pod["spec"].get("schedulingGates"))

    def standing(self, run: str) -> list[Json]:
        """Its pods that run and stay."""
        return [
            pod
            for pod in self.pods(run)
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def groups(self, run: str) -> set[str]:
        """Names of the groups of its pods."""
        return {pod["metadata"]["labels"][GROUP] for pod in self.pods(run)}

    def billed(self, run: str) -> int:
        """GPU microseconds on its bill."""
        return int((self.status(run).get("cost") or {}).get("heldGpuMicroseconds", 0))

    def restarts(self, run: str) -> Json:
        """How often it was restarted, by cause; causes that never came up are left out."""
        return {cause: count for cause, count in self.status(run)["restarts"].items() if count}

    async def complete(self, run: str) -> None:
        """Its workers complete the last stage, and its agents will end with 0."""
        for pod in self.pods(run):
            body = {"metadata": {"annotations": {"test/exit-code": "0"}}}
            await self.client.patch("Pod", self.namespace, pod["metadata"]["name"], body, manager="test")
        self.agents.finish(run)
        await self.waits_for(lambda: self.phase(run) == "Succeeded", f"{run} is complete")

    async def silence(self, node: str) -> None:
        """Nothing is heard of a node any more."""
        told = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "no sign of life"}
        body = {"metadata": {"annotations": {"kwok.x-k8s.io/node": None}}}
        await self.client.patch("Node", "", node, body, manager="test")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {"status": {"conditions": [told | {"lastTransitionTime": now, "lastHeartbeatTime": now}]}}
        await self.client.patch("Node", "", node, body, subresource="status", manager="test")

    async def fail_pod(self, name: str, code: int = 1) -> None:
        """A pod's container ends with an exit code."""
        pod = await self.client.get("Pod", self.namespace, name)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"exitCode": code, "reason": "Error", "startedAt": now, "finishedAt": now}
        statuses = [
            item | {"ready": False, "started": False, "state": {"terminated": ended}}
            for item in pod["status"]["containerStatuses"]
        ]
        body = {"phase": "Failed", "containerStatuses": statuses}
        await self.client.patch("Pod", self.namespace, name, {"status": body}, subresource="status", manager="test")

    async def waits_for(self, condition: Callable[[], object], what: str) -> Any:
        """Wait for something; tells everything that is known if it does not come."""
        return await until(condition, what, self.explain, SECONDS)

    async def becomes(self, name: str, type_: str, status: str, reason: str) -> Json:
        """Wait for a condition of a run; returns it."""

        def found() -> Json | None:
            condition = self.condition(name, type_)
            return condition if condition and (condition["status"], condition["reason"]) == (status, reason) else None

        return dict(await self.waits_for(found, f"{name}: {type_} is {status}, {reason}"))

    async def is_running(self, run: str, nodes: int) -> None:
        """Wait until a run makes steps with so many nodes."""

        def running() -> bool:
            return self.phase(run) == "Running" and self.status(run)["nodes"]["current"] == nodes

        await self.waits_for(running, f"{run} runs with {nodes} nodes")

    def explain(self) -> str:
        """What is known."""
        kept = ("phase", "generation", "nodes", "podGroups", "restarts", "conditions", "step")
        runs = {name: {key: self.status(name).get(key) for key in kept} for name in self._names()}
        pods = {name: [_pod_line(pod) for pod in self.pods(name)] for name in runs}
        loads = [[body["metadata"]["name"], body.get("status", {}).get("conditions")] for body in self.workloads()]
        parts = [json.dumps(item) for item in (runs, pods, loads)]
        return "\n".join([*parts, self.operators.tail(), self.kueue.tail()])

    def _names(self) -> list[str]:
        return [name for (place, name) in self.views[KIND].objects if place == self.namespace]


def _pod_line(pod: Json) -> str:
    head, gates = pod["metadata"], pod["spec"].get("schedulingGates") or []
    facts = [head["name"], pod["status"].get("phase"), head["labels"].get(GROUP)]
    facts += ["deleting"] if "deletionTimestamp" in head else []
    return " ".join(map(str, [*facts, *(gate["name"] for gate in gates), *(head.get("finalizers") or [])]))


def queue_objects(namespace: str, gpus: int) -> list[Json]:
    """A flavor, a cluster queue with quota for GPUs, and the queue `team` of the namespace: those of the example."""
    example = Path(__file__).parents[2] / "manifests" / "examples" / "kueue" / "queue.yaml"
    flavor, cluster, local = yaml.safe_load_all(example.read_text())
    flavor["metadata"]["name"] = cluster["metadata"]["name"] = local["spec"]["clusterQueue"] = namespace
    flavor["spec"]["nodeLabels"] = {POOL: namespace}
    (group,) = cluster["spec"]["resourceGroups"]
    (held,) = group["flavors"]
    held["name"] = namespace
    next(item for item in held["resources"] if item["name"] == "nvidia.com/gpu")["nominalQuota"] = gpus
    local["metadata"] = {"name": "team", "namespace": namespace}
    return [flavor, cluster, local]


def queued_run(name: str, namespace: str, **spec: Any) -> Json:
    """A run whose simulated agents make steps for ever."""
    stage = train_stage(steps=100_000)
    stage["train"]["parallel"] = {"microBatchesPerStep": 96}
    fixed = {
        "pool": {"gpusPerNode": GPUS, "pricePerGpuHour": "2.00"},
        "stages": [stage],
        "elasticity": {"waitForMaxSeconds": 0, "minGainSeconds": 0},
        "failurePolicy": {"hangSeconds": 3600, "startSeconds": 3600, "graceSeconds": 20},
    }
    body = manifest(**(fixed | spec))
    body["metadata"] = {"name": name, "namespace": namespace}
    return body
