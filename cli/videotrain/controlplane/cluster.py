"""A whole cluster on this machine: a real control plane, nodes whose pods are process trees, and an object store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from videotrain.clock import utc_now
from videotrain.controlplane.errors import ControlPlaneError
from videotrain.controlplane.look import look
from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.settings import NodeMonitoring, Settings
from videotrain.files import replace_file
from videotrain.kubelet.agent import serve
from videotrain.objectstore.s3_server import ObjectServer
from videotrain_api.crd.definition import custom_resource_definition

BUCKET: Final = "videotrain"
REGION: Final = "us-east-1"
NODES_USER: Final = "videotrain-nodes"
SETTINGS: Final = Settings(nodes=NodeMonitoring(period_seconds=2, grace_seconds=20, toleration_seconds=30))
"""Nodes of one machine answer within seconds: one that does not is lost sooner than in a data centre."""
NODES_SECONDS: Final = 120.0
"""Time that the nodes may take to become ready."""
_RECORD: Final = "cluster.json"
_CHECK_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Shape:
    """What a user asks for."""

    gpus_per_node: int
    """How many each node offers to the scheduler."""
    devices: Mapping[str, Sequence[str]]
    """Names of the nodes, each with the GPUs that its pods share; none for pods on the CPU."""


@dataclass(frozen=True)
class Record:
    """What a running cluster tells other processes, in D/cluster.json."""

    kubeconfig: str
    server: str
    object_store: str
    nodes: int
    gpus_per_node: int
    started_at: str

    def write(self, directory: Path) -> None:
        """Write it, whole or not at all."""
        replace_file(directory / _RECORD, json.dumps(asdict(self)), private=True)

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        """That of a directory; None before the cluster is ready."""
        try:
            return cls(**json.loads((directory / _RECORD).read_text()))
        except FileNotFoundError:
            return None


class Cluster:
    """A cluster of a directory. Objects and stored data stay there; processes end with `running`."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.directory = directory
        self.shape = shape
        self.plane = ControlPlane(directory / "control-plane", SETTINGS)

    async def run(self, stop: asyncio.Event, show: Callable[[Record], Coroutine[Any, Any, None]]) -> None:
        """Start everything, show it until told to stop, and end everything.

        Args:
            stop: set it to end the cluster.
            show: awaited when the cluster is ready, and cancelled at its end.

        Raises:
            ControlPlaneError: the control plane did not start.
            ObjectServerError: the object store did not start.
            ExceptionGroup: a part failed while the cluster ran.
        """
        (self.directory / _RECORD).unlink(missing_ok=True)
        try:
            await asyncio.to_thread(self.plane.start)
            await asyncio.to_thread(self.plane.install, custom_resource_definition())
            store = await ObjectServer.start(self.directory, f"s3://{BUCKET}/")
            try:
                await self._serve(store, stop, show)
            finally:
                await store.stop()
        finally:
            (self.directory / _RECORD).unlink(missing_ok=True)
            self.plane.stop()

    async def _serve(
        self, store: ObjectServer, stop: asyncio.Event, show: Callable[[Record], Coroutine[Any, Any, None]]
    ) -> None:
        record = self._record(store)
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(part) for part in (self._nodes(store), store.ended(), self._watch())]
            parts.append(group.create_task(self._show(record, show)))
            await stop.wait()
            for part in parts:
                part.cancel()

    async def _show(self, record: Record, show: Callable[[Record], Coroutine[Any, Any, None]]) -> None:
        async with asyncio.timeout(NODES_SECONDS):
            while True:
                seen = await asyncio.to_thread(look, self.directory)
                if {node.name for node in seen.nodes if node.ready} >= set(self.shape.devices):
                    break
                await asyncio.sleep(_CHECK_SECONDS / 4)
        record.write(self.directory)
        await show(record)

    async def _nodes(self, store: ObjectServer) -> None:
        user = self.plane.kubeconfig(NODES_USER, ("system:masters",))
        devices, gpus = self.shape.devices, self.shape.gpus_per_node
        await serve(user, self.directory / "nodes", devices, gpus, identity(store))
        raise ControlPlaneError("the nodes ended by themselves")

    async def _watch(self) -> None:
        while True:
            self.plane.check()
            await asyncio.sleep(_CHECK_SECONDS)

    def _record(self, store: ObjectServer) -> Record:
        return Record(
            kubeconfig=str(self.plane.kubeconfig()),
            server=self.plane.server,
            object_store=store.endpoint_url,
            nodes=len(self.shape.devices),
            gpus_per_node=self.shape.gpus_per_node,
            started_at=utc_now("seconds"),
        )


def identity(store: ObjectServer) -> Mapping[str, str]:
    """What a node gives its pods to reach the object store, as the nodes of a cloud give theirs a role."""
    return {
        "AWS_ENDPOINT_URL": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": store.credentials.secret_key,
        "AWS_REGION": REGION,
    }
