"""Faults of KWOK's nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from videotrain_operator.kube.client import KubeClient

MANAGER: Final = "scale-benchmark"
LEASE_SECONDS: Final = 40
"""As a kubelet's."""
_LEASES: Final = "kube-node-lease"


async def silence(client: KubeClient, name: str) -> None:
    """Let a node fall silent as if its kubelet had died: the objects stay, nobody renews its lease or plays its pods.

    The lease is taken over by a holder who never renews it, and KWOK leaves nodes alone whose lease another one holds.
    """
    spec = {"holderIdentity": "nobody", "leaseDurationSeconds": 86400, "renewTime": micro_time()}
    await client.patch("Lease", _LEASES, name, {"spec": spec}, manager=MANAGER)


async def remove_node(client: KubeClient, name: str) -> None:
    """Delete the Node object."""
    await client.delete("Node", "", name)


async def is_ready(client: KubeClient, name: str) -> bool:
    """Whether its condition Ready is True."""
    conditions = (await client.get("Node", "", name))["status"]["conditions"]
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def micro_time() -> str:
    """Now, as Kubernetes writes a MicroTime."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
