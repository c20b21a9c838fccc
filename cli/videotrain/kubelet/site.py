"""What all pods of the process nodes beside a real API server share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from videotrain.kubelet.address_pool import AddressPool
from videotrain.kubelet.events import Events
from videotrain.processes.devices import NodeDevices
from videotrain_api.schema import Json
from videotrain_operator.kube.client import KubeClient

_UNPULLABLE: Final = re.compile(r"does-not-exist|^([^/]*\.)?invalid(:\d+)?/")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Periods in seconds. The defaults are a kubelet's."""

    lease: float = 10.0
    """Between two renewals of a node's Lease."""
    back_off: float = 10.0
    """First pause before a container that ended early is started again; doubled each time."""
    longest_back_off: float = 300.0
    healthy: float = 600.0
    """A container that ran for so long starts again from the first pause."""
    refresh: float = 30.0
    """Between two looks at the ConfigMaps, Secrets and tokens that a pod has mounted."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One machine's process nodes: where they are, whom they talk to, and what every pod gets."""

    client: KubeClient
    events: Events
    workdir: Path
    environment: Mapping[str, str]
    addresses: AddressPool
    devices: Mapping[str, NodeDevices]
    """GPUs by name of the node."""
    timing: Timing

    @property
    def pods(self) -> Path:
        """Directories of the pods."""
        return self.workdir / "pods"

    @property
    def claims(self) -> Path:
        """Directories of the persistent volume claims."""
        return self.workdir / "claims"

    def pod_root(self, pod: Json) -> Path:
        """The directory of a pod, also the root of its main container."""
        return self.pods / f"{pod['metadata']['name']}-{pod['metadata']['uid'][:8]}"

    def log_file(self, pod: Json, container: str = "") -> Path:
        """Where a container's output goes; the main one's if none is named."""
        suffix = f".{container}" if container else ""
        return self.workdir / "logs" / f"{self.pod_root(pod).name}{suffix}.log"

    def server_environment(self) -> dict[str, str]:
        """How a pod finds the API server."""
        parts = urlsplit(self.client.server)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return {"KUBERNETES_SERVICE_HOST": str(parts.hostname), "KUBERNETES_SERVICE_PORT": str(port)}


def can_be_pulled(image: str) -> bool:
    """Whether to act as if the image existed: not with `does-not-exist` in its name or from the registry `invalid`."""
    return _UNPULLABLE.search(image) is None
