"""The Node object and the Lease of a process node, written as a kubelet writes them."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
import uuid
from pathlib import Path
from typing import Final

import psutil

from videotrain import __version__
from videotrain.clock import utc_now
from videotrain.kubelet.events import COMPONENT
from videotrain.kubelet.status import now
from videotrain.kubelet.status_writer import STRATEGIC
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, KubeClient

_log = logging.getLogger(__name__)

GPU_RESOURCE: Final = "nvidia.com/gpu"
LEASES: Final = "kube-node-lease"
LEASE_SECONDS: Final = 40
STATUS_SECONDS: Final = 300.0
"""A status that says nothing new is written so often."""
FEATURES: Final = ("ExtendWebSocketsToKubelet",)
"""What a node that is asked for logs declares, so that the API server passes WebSockets on to it."""
PODS: Final = 110
"""A kubelet's default limit."""
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_FINE: Final = {
    "MemoryPressure": ("False", "KubeletHasSufficientMemory", "enough memory is free"),
    "DiskPressure": ("False", "KubeletHasNoDiskPressure", "enough disk is free"),
    "PIDPressure": ("False", "KubeletHasSufficientPID", "enough process ids are free"),
    "Ready": ("True", "KubeletReady", "the process node serves its pods"),
}


class Registration:
    """One node's Node and Lease."""

    def __init__(self, client: KubeClient, name: str, address: str, gpus: int, workdir: Path) -> None:
        self.name = name
        self.address = address
        self._client = client
        self._gpus = gpus
        self._workdir = workdir
        self.port: int | None = None
        """Where the API server asks it for logs; None: nowhere."""
        self._boot = str(uuid.uuid4())
        self._since: dict[str, str] = {}
        self._written_at = 0.0
        self.powered = False
        """It is switched on: it registers, renews its Lease and runs pods."""
        self.uid = ""
        """Of the Node object that it made or found; empty if that was deleted."""
        self.version = 0
        """resourceVersion at which that object was seen last."""
        self._node: Json = {}

    @property
    def serves(self) -> bool:
        """It is switched on and has a Node object."""
        return self.powered and bool(self.uid)

    async def power_on(self) -> None:
        """Make the Node object, or take over the one of that name, and report that it is ready."""
        version = str((await self._client.raw("GET", "/version"))["gitVersion"])
        self._boot, self._since = str(uuid.uuid4()), {}
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}
        self._see(await self._client.apply(manifest, COMPONENT))
        self._version_of_server = version
        self.powered = True
        await self.renew()
        await self.write_status()

    def power_off(self) -> None:
        """Nothing is written any more: to the control plane the node falls silent."""
        self.powered = False

    def observe(self, node: Json) -> None:
        """A version of the Node object was seen."""
        if self.uid and node["metadata"]["uid"] == self.uid:
            self._see(node)

    def removed(self, uid: str) -> bool:
        """A Node object of this name was deleted; whether it was this node's, which then stays away."""
        if uid != self.uid:
            return False
        self.uid = ""
        return True

    async def keep_alive(self) -> None:
        """One turn: renew the Lease, and write the status if it is due or somebody changed it."""
        if not self.serves:
            return
        await self.renew()
        unexpected = any(self._held(type_) != expected[0] for type_, expected in _FINE.items())
        if self.serves and (unexpected or time.monotonic() - self._written_at > STATUS_SECONDS):
            await self.write_status()

    async def renew(self) -> None:
        """Renew the node's Lease, or make it."""
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.uid}
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": utc_now()}
        manifest = {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": LEASES, "ownerReferences": [owner]}, "spec": spec,
        }  # fmt: skip
        await self._client.apply(manifest, COMPONENT)

    async def write_status(self) -> None:
        """Report capacity, addresses and conditions."""
        body = {"metadata": {"uid": self.uid}, "status": self._status()}
        node = await self._client.patch(
            "Node", "", self.name, body, content=STRATEGIC, subresource="status", manager=COMPONENT
        )
        self._written_at = time.monotonic()
        self.observe(node)

    def _see(self, node: Json) -> None:
        version = int(node["metadata"]["resourceVersion"])
        if version >= self.version or node["metadata"]["uid"] != self.uid:
            self.uid, self.version, self._node = node["metadata"]["uid"], version, node

    def _held(self, type_: str) -> str | None:
        conditions = self._node.get("status", {}).get("conditions", [])
        return next((item["status"] for item in conditions if item["type"] == type_), None)

    def _status(self) -> Json:
        amounts = {
            "cpu": str(os.cpu_count()),
            "memory": f"{psutil.virtual_memory().total // 1024}Ki",
            "ephemeral-storage": f"{psutil.disk_usage(str(self._workdir)).total // 1024}Ki",
            "pods": str(PODS),
            GPU_RESOURCE: str(self._gpus),
        }
        addresses = [{"type": "InternalIP", "address": self.address}, {"type": "Hostname", "address": self.name}]
        status: Json = {"capacity": amounts, "allocatable": amounts, "addresses": addresses}
        if self.port is not None:
            status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": self.port}}
            status["declaredFeatures"] = list(FEATURES)
        return status | {"conditions": self._conditions(), "nodeInfo": self._info()}

    def _conditions(self) -> list[Json]:
        at, found = now(), []
        for type_, (status, reason, message) in _FINE.items():
            if self._held(type_) != status or type_ not in self._since:
                self._since[type_] = at
            times = {"lastHeartbeatTime": at, "lastTransitionTime": self._since[type_]}
            found.append({"type": type_, "status": status, "reason": reason, "message": message} | times)
        return found

    def _info(self) -> Json:
        machine = Path("/etc/machine-id")
        system = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
        return {
            "machineID": machine.read_text().strip() if machine.exists() else "",
            "systemUUID": str(uuid.uuid5(uuid.NAMESPACE_DNS, self.name)),
            "bootID": self._boot,
            "kernelVersion": platform.release(),
            "osImage": system.get("PRETTY_NAME", platform.system()),
            "containerRuntimeVersion": f"process://{__version__}",
            "kubeletVersion": self._version_of_server,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": _architecture(),
        }


async def keep_alive(nodes: list[Registration], seconds: float) -> None:
    """Renew for ever; one node's refused request does not hold up the others."""
    while True:
        turns = await asyncio.gather(*(node.keep_alive() for node in nodes), return_exceptions=True)
        for node, error in zip(nodes, turns, strict=True):
            if isinstance(error, ApiError | Conflict | NotFound):
                _log.warning("node %s: not renewed, again in %g s: %s", node.name, seconds, error)
            elif isinstance(error, BaseException):
                raise error
        await asyncio.sleep(seconds)


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())
