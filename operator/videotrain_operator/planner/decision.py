"""What is to be done: the planner's whole output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from videotrain_api.crd.wire import Manifest
from videotrain_api.records import Roster
from videotrain_api.resource.status import RunStatus


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """An object to delete, if it still is the one that was seen."""

    kind: str
    name: str
    uid: str
    """Precondition: an object of the same name and another uid is left alone."""
    grace_seconds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something to tell the user, emitted after the status write."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One pass. Order of execution: apply, delete, status, events."""

    apply: tuple[Manifest, ...] = ()
    """Objects to apply server-side, in this order. Only those that differ from what was observed."""
    delete: tuple[Deletion, ...] = ()
    status: RunStatus
    """The whole new status; written only if it differs."""
    events: tuple[Event, ...] = ()
    requeue_seconds: float | None = None
    """Look again after so long even if nothing changes; None when only a change matters."""
    unreadable: tuple[str, ...] = ()
    """What others wrote and this pass could not read; for telling."""
    delete_run: bool = False
    """The TTL is over: delete the run itself."""
    until_saved_micros: int = 0
    """What the nodes that are held cost until the next checkpoint is complete."""
    roster: Roster | None = None
    """The run's roster once this is applied; None before the first."""
