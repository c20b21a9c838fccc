"""A cluster to break: a real control plane, process nodes, an object store and two operators, all real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.process_nodes import ProcessNodes

from videotrain.controlplane.cluster import identity
from videotrain.objectstore.s3_server import ObjectServer
from videotrain_api.metrics import LEADER
from videotrain_api.vocabulary import KIND
from videotrain_operator.kube.informer import Watch

PATIENCE = 600.0
"""Seconds that anything may take on a busy machine."""
LEASE_SECONDS = 10
NODE_GRACE_SECONDS = 12
"""After so long without a sign of a node, the control plane declares it lost."""
POLL_SECONDS = 0.1


class Operators:
    """Replicas of the operator, each a process of its own that can be killed and started again."""

    def __init__(self, kubeconfig: Path, folder: Path, replicas: int = 2, flags: tuple[str, ...] = ()) -> None:
        self._kubeconfig, self._folder, self._flags = kubeconfig, folder, flags
        self._count = 0
        self._replicas = replicas
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, replicas: int | None = None, kubeconfig: Path | None = None) -> None:
        """Start what does not run.

        Args:
            replicas: how many there shall be from now on; as many as before if None.
            kubeconfig: of those that are started from now on; as before if None.
        """
        self._replicas, self._kubeconfig = replicas or self._replicas, kubeconfig or self._kubeconfig
        self._folder.mkdir(parents=True, exist_ok=True)
        self.processes = {n: process for n, process in self.processes.items() if process.poll() is None}
        while len(self.processes) < self._replicas:
            self._count += 1
            command = [str(Path(sys.executable).with_name("videotrain-operator")), "run", "--http-port", "0"]
            command += ["--kubeconfig", str(self._kubeconfig), "--lease-seconds", str(LEASE_SECONDS)]
            with self.log(self._count).open("ab") as log:
                process = subprocess.Popen([*command, "--log-format", "text", *self._flags], stdout=log, stderr=log)
            self.processes[self._count] = process

    def log(self, number: int) -> Path:
        """Where a replica writes."""
        return self._folder / f"operator-{number}.log"

    def tail(self, lines: int = 30) -> str:
        """The end of the logs of the replicas that were started last."""
        found = [self.log(number) for number in range(max(1, self._count - 1), self._count + 1)]
        return "\n".join(f"{path}:\n" + "\n".join(path.read_text().splitlines()[-lines:]) for path in found)

    def url(self, number: int) -> str | None:
        """Where a replica serves its metrics; None as long as it has not said so."""
        for line in self.log(number).read_text().splitlines():
            if "serving /metrics" in line:
                return f"http://127.0.0.1:{line.rpartition(' ')[2]}"
        return None

    def metrics(self, number: int) -> str:
        """The metrics of a replica; empty while it serves none."""
        url = self.url(number)
        if url is None:
            return ""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
        return ""

    def leader(self) -> int | None:
        """The replica that says it leads."""
        living = [number for number, process in self.processes.items() if process.poll() is None]
        return next((n for n in living if f"\n{LEADER.name} 1.0" in self.metrics(n)), None)

    def ready(self) -> bool:
        """Every replica has filled its caches."""
        for number in self.processes:
            url = self.url(number)
            if url is None:
                return False
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=10).close()
            except OSError:
                return False
        return True

    def end(self, number: int, how: signal.Signals) -> None:
        """Send a signal to a replica and wait for its end."""
        process = self.processes.pop(number)
        process.send_signal(how)
        process.wait(timeout=PATIENCE)

    def end_all(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End every replica."""
        for process in self.processes.values():
            process.send_signal(how)
        for number in list(self.processes):
            self.processes.pop(number).wait(timeout=PATIENCE)


@dataclass
class View:
    """What a watcher has seen of one kind: present objects by namespace and name, and every change in order."""

    kind: str
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    listeners: list[Callable[[dict[str, Any], bool], None]] = field(default_factory=list)

    def replaced(self, items: list[dict[str, Any]], version: int) -> None:
        """Everything there is."""
        listed = {_key(item) for item in items}
        for key in [key for key in self.objects if key not in listed]:
            self.changed(self.objects[key], True)
        for item in items:
            self.changed(item, False)

    def changed(self, body: dict[str, Any], deleted: bool) -> None:
        """One object was made, changed or removed."""
        if deleted:
            self.objects.pop(_key(body), None)
        else:
            self.objects[_key(body)] = body
        for listener in self.listeners:
            listener(body, deleted)


def _key(body: dict[str, Any]) -> tuple[str, str]:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]


class Rig:
    """Everything that runs, and views of what it does."""

    def __init__(self, plane: Any, client: Any, folder: Path) -> None:
        self.plane, self.client, self.folder = plane, client, folder
        self.views = {kind: View(kind) for kind in (KIND, "Pod", "Event", "Node", "ConfigMap", "Namespace")}
        self.operators = Operators(plane.kubeconfig("chaos-operator", ("system:masters",)), folder / "operators")
        self.switched_off: set[str] = set()
        """Components of the control plane that the table itself keeps down."""
        self.store: ObjectServer
        self.nodes: ProcessNodes
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, bucket: str, node_names: list[str], refresh_seconds: float | None = None) -> None:
        """Start the object store, the nodes and the operators, and watch.

        Args:
            bucket: of the object store.
            node_names: of the process nodes.
            refresh_seconds: between a node's looks at what its pods have mounted; its default if None.
        """
        self.store = await ObjectServer.start(self.folder, f"s3://{bucket}/")
        env = [f"{name}={value}" for name, value in identity(self.store).items()]
        self.nodes = ProcessNodes(self.plane, self.folder / "nodes", env=env, refresh_seconds=refresh_seconds)
        self.nodes.names = node_names
        await asyncio.to_thread(self.nodes.start)
        self._watching = [
            asyncio.create_task(Watch(self.client, kind, view, starting=True).run())
            for kind, view in self.views.items()
        ]
        self._watching.append(asyncio.create_task(self._keep_plane()))
        self.operators.start()
        await until(lambda: self.operators.leader() is not None, "a replica of the operator leads", self.operators.tail)
        await until(lambda: self._ready_nodes() >= set(node_names), "all nodes are ready")

    async def _keep_plane(self) -> None:
        """Start components that ended by themselves, as a kubelet does with static pods.

        The scheduler of Kubernetes 1.37 ends when it lists pods anew after an outage and finds another pod under a
        name that it knows.
        """
        while True:
            for component in self.plane.components:
                if not component.running and component.name not in self.switched_off:
                    await asyncio.to_thread(self.plane.start, component.name)
            await asyncio.sleep(POLL_SECONDS)

    def _ready_nodes(self) -> set[str]:
        ready = set()
        for body in self.views["Node"].objects.values():
            conditions = {c["type"]: c["status"] for c in body["status"].get("conditions") or []}
            tainted = [t for t in body["spec"].get("taints") or [] if t["effect"] != "PreferNoSchedule"]
            if conditions.get("Ready") == "True" and not tainted and not body["spec"].get("unschedulable"):
                ready.add(body["metadata"]["name"])
        return ready

    def is_ready(self, node: str) -> bool:
        """The node takes pods."""
        return node in self._ready_nodes()

    async def stop(self) -> None:
        """End everything."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self.operators.end_all()
        if hasattr(self, "nodes"):
            await asyncio.to_thread(self.nodes.clean)
        if hasattr(self, "store"):
            await self.store.stop()


async def until(
    condition: Callable[[], object],
    what: str,
    explain: Callable[[], str] = lambda: "",
    seconds: float = PATIENCE,
) -> Any:
    """The first true value of a condition; fails with what was seen if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{explain()}"
        await asyncio.sleep(POLL_SECONDS)
    return found
