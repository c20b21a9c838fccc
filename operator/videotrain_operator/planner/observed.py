"""What was seen: the planner's whole input beside the run and the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from videotrain_api.records import AgentProgress, Roster
from videotrain_api.resource.training_budgets import TrainingBudget


@dataclass(frozen=True, kw_only=True)
class PodView:
    """A worker pod, reduced to what decisions need. Times come from the API server, never from this process."""

    name: str
    uid: str
    index: int
    """Value of the index label."""
    phase: str
    """Pending, Running, Succeeded or Failed."""
    created_at: datetime
    resource_version: str = ""
    node: str | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of its node; nothing if that is not known."""
    address: str | None = None
    """Pod IP."""
    running: bool = False
    """The agent's container runs."""
    deleting: bool = False
    bound_at: datetime | None = None
    """When it got its node: from here on it costs."""
    started_at: datetime | None = None
    """When its container started."""
    finished_at: datetime | None = None
    """When its container ended."""
    exit_code: int | None = None
    reason: str | None = None
    """Such as OOMKilled, Evicted, NodeLost."""
    message: str = ""
    unschedulable: str = ""
    """Why no node takes it, in the scheduler's words; empty if it has a node or was not tried yet."""
    image_problem: str = ""
    """Why its container cannot be made, such as `ImagePullBackOff: ...`; empty if nothing is wrong."""
    in_queue: bool = False
    """A queue took it when it was made."""
    gated: bool = False
    """A queue holds it back: the scheduler does not look at it yet."""
    pool: str | None = None
    """For whose pool it was made, see `pool_name`; None for that of the run."""
    group: str | None = None
    """Pod group in the queue."""
    place: int | None = None
    """Which pod of its group it is."""
    finalizing: bool = False
    """It is deleted and over, or never got a node, and only a finalizer keeps the object."""
    gpus: int = 0
    price: str | None = None
    """The price annotation, `PRICE CURRENCY`."""
    node_lost: bool = False
    """Its node is gone or not ready, so the pod is dead."""
    node_reason: str = ""
    """What is known about a lost or leaving node, for people."""
    node_untrusted: bool = False
    """Its node looks lost while nodes are not trusted: neither dead nor fit for a new world."""
    node_draining: bool = False
    """Its node has a reclaim taint, or is cordoned and its pool wants it to leave: it must leave soon."""
    node_cordoned: bool = False
    """Nothing new is to be placed on its node."""
    config_map: str | None = None
    """Name of the frozen config map that it mounts; None if it is not known."""
    key_secret: str | None = None
    """Name of the Secret with the signing key that it mounts; None if it is not known."""
    key_changed: bool = False
    """It mounts another signing key than the operator has now, so its agent and the operator do not know each other."""

    @property
    def leaving(self) -> bool:
        """It must go soon, and its workers save first."""
        return self.node_draining or self.key_changed

    @property
    def alive(self) -> bool:
        """Could be, or go on being, a member."""
        gone = self.deleting or self.node_lost or self.node_untrusted
        return self.running and not gone and self.finished_at is None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A snapshot of everything that belongs to one run."""

    pods: tuple[PodView, ...] = ()
    agents: Mapping[str, AgentProgress] = field(default_factory=dict)
    """Answers of the agents by pod name; those that did not answer are absent."""
    network_policy: Mapping[str, Any] | None = None
    """Spec of the run's network policy, see `videotrain_api.render.network.stored_policy`; None if there is none."""
    config_maps: frozenset[str] = frozenset()
    """Names of owned config maps."""
    signing_key: bytes
    """By which operator and agents of the run prove to each other who they are."""
    frozen_spec: Mapping[str, Any] | None = None
    """The spec that the config map named in status.configMap was made from, parsed; None if there is no such map."""
    departed: tuple[PodView, ...] = ()
    """Pods that were deleted since the last pass, as they were last seen; a help for exact bills, may be empty."""
    looked_at: datetime | None = None
    """As of when `pods` is known to be so; the time of the pass if None."""
    followed_since: datetime | None = None
    """Since when no pod can have come and gone without being in `pods` or `departed`; always if None."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Uids by name of pods that are on record and missing, which nothing proves to be gone: neither there nor dead."""
    misplaced: frozenset[str] = frozenset()
    """Names of pods, among `pods`, whose labels or owner somebody changed."""
    roster: Roster | None = None
    """The roster that the pods mount, as published; None before the first, or if what is there cannot be read."""
    roster_resource_version: str | None = None
    """None if there is no config map for it."""
    ledger: Mapping[str, Any] | None = None
    """Content of the ledger config map, parsed; None if there is none yet, or none that can be read."""
    ledger_resource_version: str | None = None
    budgets: tuple[TrainingBudget, ...] | None = ()
    """Every one of the cluster, whether it covers the run or not; None while the server does not tell of them."""
    unreadable: tuple[str, ...] = ()
    """What others wrote on pods or into the ledger and cannot be read: it counts as not written."""
    nodes_untrusted: str = ""
    """Why nodes are not trusted, for people; empty while they are. As long as they are not, nothing is done because a
    node looks lost or an agent is silent. A container that ended is believed all the same."""
    time_untrusted: str = ""
    """Why the time of this pass may be wrong, for people; empty if it is not. Nothing is decided by it then that cannot
    be taken back."""
