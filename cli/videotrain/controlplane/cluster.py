"""A whole cluster on this machine: a real control plane, nodes whose pods are process trees, and an object store."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from videotrain.clock import utc_now
from videotrain.controlplane.commands import NODE_CLIENT
from videotrain.controlplane.errors import ControlPlaneError
from videotrain.controlplane.look import look
from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.settings import NodeMonitoring, Settings
from videotrain.files import replace_file
from videotrain.kubelet.agent import Front, serve
from videotrain.kubelet.server import Credentials
from videotrain.kubelet.usage import GROUP_VERSION
from videotrain.objectstore.s3_server import ObjectServer
from videotrain_api.schema import Json

BUCKET: Final = "videotrain"
REGION: Final = "us-east-1"
NODES_USER: Final = "videotrain-nodes"
SETTINGS: Final = Settings(nodes=NodeMonitoring(period_seconds=2, grace_seconds=20, toleration_seconds=30))
"""Nodes of one machine answer within seconds: one that does not is lost sooner than in a data centre."""
NODES_SECONDS: Final = 120.0
"""Time that the nodes may take to become ready."""
METRICS_HOST: Final = "metrics.kube-system.svc"
"""Service at which the aggregation of the API server finds the nodes' metrics."""
_RECORD: Final = "cluster.json"
_CHECK_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


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

    async def _publish_metrics(self, address: str, port: int) -> None:
        """Let the API server ask the nodes for what `kubectl top` shows."""
        if ip_address(address).is_loopback:
            _log.warning("kubectl top shows nothing: only root can give nodes addresses that Services can lead to")
            return
        authority = base64.b64encode(self.plane.authority_file.read_bytes()).decode()
        for path, manifest in metrics_objects(address, port, authority):
            await asyncio.to_thread(self.plane.api().apply, path, manifest)

    async def _nodes(self, store: ObjectServer) -> None:
        user = self.plane.kubeconfig(NODES_USER, ("system:masters",))
        devices, gpus = self.shape.devices, self.shape.gpus_per_node
        pair = self.plane.layout.authority.server("nodes", [METRICS_HOST])
        credentials = Credentials(pair.certificate, pair.key, self.plane.authority_file, NODE_CLIENT)
        front = Front(credentials, self._publish_metrics)
        await serve(user, self.directory / "nodes", devices, gpus, identity(store), front=front)
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
        **store.credentials.environment(),
        "AWS_REGION": REGION,
    }


def metrics_objects(address: str, port: int, authority: str) -> Iterator[tuple[str, Json]]:
    """What makes the API server pass requests for metrics.k8s.io on to an address, each with its path.

    Args:
        address: which Services can lead to.
        port: of it.
        authority: certificate of who signed for METRICS_HOST, base64.
    """
    name, namespace, _ = METRICS_HOST.split(".")
    group, version = GROUP_VERSION.split("/")
    head = {"name": name, "namespace": namespace}
    ports = [{"name": "https", "port": 443, "targetPort": port}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": head, "spec": {"ports": ports}}
    yield f"/api/v1/namespaces/{namespace}/services/{name}", service
    slices: Json = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"}
    slices["metadata"] = head | {"labels": {"kubernetes.io/service-name": name}}
    slices |= {"endpoints": [{"addresses": [address]}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}
    yield f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}", slices
    spec: Json = {"group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100}
    spec |= {"service": head, "caBundle": authority}
    about = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
    }
    yield f"/apis/apiregistration.k8s.io/v1/apiservices/{version}.{group}", about | {"spec": spec}
