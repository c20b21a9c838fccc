"""What was seen: the planner's whole input beside the run and the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from videotrain_api.records import AgentProgress, Roster


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
    node: str | None = None
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
    """Such as OOMKilled, Evicted, NodeLost, Unschedulable."""
    message: str = ""
    roster: Roster | None = None
    """The roster annotation, as published."""
    gpus: int = 0
    price: str | None = None
    """The price annotation, `PRICE CURRENCY`."""
    node_lost: bool = False
    """Its node is gone or not ready: positive evidence that it is dead."""
    node_draining: bool = False
    """Its node is cordoned or has a reclaim taint: it must leave soon."""

    @property
    def alive(self) -> bool:
        """Could be, or go on being, a member."""
        return self.running and not self.deleting and not self.node_lost and self.finished_at is None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A snapshot of everything that belongs to one run."""

    pods: tuple[PodView, ...] = ()
    agents: Mapping[str, AgentProgress] = field(default_factory=dict)
    """Answers of the agents by pod name; those that did not answer are absent."""
    service_exists: bool = False
    config_maps: frozenset[str] = frozenset()
    """Names of owned config maps."""
    frozen_spec: Mapping[str, Any] | None = None
    """The spec that the config map named in status.configMap was made from, parsed; None if there is no such map."""
    departed: tuple[PodView, ...] = ()
    """Pods that were deleted since the last pass, as they were last seen; a help for exact bills, may be empty."""
    ledger: Mapping[str, Any] | None = None
    """Content of the ledger config map, parsed; None if there is none yet."""
    ledger_resource_version: str | None = None
