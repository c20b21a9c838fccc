"""Process nodes: each runs the pods that are bound to it as child processes.

One object stands for all nodes of the machine. It watches pods, places waiting ones, starts and stops their processes
and writes what happened into their status. It needs only the cluster interface and the binding of a pod, so it works
beside the embedded cluster and beside a real API server alike.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from videotrain.embedded import podstatus
from videotrain.embedded.addresses import free_address
from videotrain.embedded.clock import utc_now
from videotrain.embedded.leftovers import end_leftovers
from videotrain.embedded.podfiles import (
    ContainerConfigError,
    Lookup,
    command_line,
    container_of,
    environment,
    write_downward_files,
    write_volumes,
)
from videotrain.embedded.process import KILLED, Ending, SupervisedProcess, read_ending
from videotrain.embedded.scheduler import is_ready, place
from videotrain.embedded.store import set_condition
from videotrain.embedded.transaction import stopped
from videotrain_operator.cluster.interface import Cluster, Conflict, NotFound

Json = dict[str, Any]
_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
"""How often a node's last sign of life is stored; it bounds the bill of a pod whose end nobody recorded."""


class NodeCluster(Cluster, Protocol):
    """What a node needs beside observing and applying."""

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> Json:
        """Assign a pod to a node."""


@dataclass(frozen=True, kw_only=True)
class NodeShape:
    """What every node offers."""

    allocatable: Mapping[str, int]
    """Extended resources, such as the worker slots that stand for GPUs."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Tenant:
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
    """All nodes of this machine. Use as an asynchronous context manager; no process is left behind it."""

    def __init__(
        self, cluster: NodeCluster, workdir: Path, names: Sequence[str], shape: NodeShape, namespace: str
    ) -> None:
        self._cluster = cluster
        self._workdir = workdir.resolve()
        self._names = list(names)
        self._shape = shape
        self._namespace = namespace
        self._down: set[str] = set()
        self._tenants: dict[str, _Tenant] = {}
        self._wake = asyncio.Event()
        self._background: asyncio.TaskGroup | None = None
        self._loops: list[asyncio.Task[None]] = []
