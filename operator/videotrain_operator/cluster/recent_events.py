"""Events that are kept in the status until they are recorded: an operator may be killed before it comes to it.

They are recorded under names that follow from what they tell, so whoever records one again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from videotrain_api.resource.status import RecentEvent
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Cluster
from videotrain_operator.planner.decision import Event

KEPT: Final = 6
"""Events that a status keeps; a pass tells three at most of a run that goes well."""
RECORD_SECONDS: Final = 600.0
"""How long an event is tried to be recorded, and kept."""
AGAIN_SECONDS: Final = 120.0
"""What is older was recorded, or will be by a process that an outage of the API server did not end."""


def told_at(events: Iterable[Event], now: datetime) -> list[RecentEvent]:
    """The events of a pass as they are kept and recorded."""
    at = now.replace(microsecond=0)
    return [RecentEvent(at=at, type=event.type, reason=event.reason, message=event.message) for event in events]


def with_events(status: Json, events: Iterable[Event], now: datetime) -> Json:
    """A status that keeps the events of its pass, too.

    Args:
        status: of the pass, with the events that were told before.
        events: those of the pass.
        now: the time of the pass.
    """
    new = [event.to_wire() for event in told_at(events, now)]
    if not new:
        return status
    earlier = _recent(
        read_status({"recentEvents": status.get("recentEvents")}).status.recent_events, now, RECORD_SECONDS
    )
    return status | {"recentEvents": [*(event.to_wire() for event in earlier), *new][-KEPT:]}


async def record_recent(cluster: Cluster, run: Json, now: datetime) -> None:
    """Record again what was told of a run lately: nobody knows whether it was recorded.

    Args:
        cluster: where to record it.
        run: the run with its stored status.
        now: the time.
    """
    for event in _recent(read_status(run.get("status")).status.recent_events, now, AGAIN_SECONDS):
        await record(cluster, run, event)


async def record(cluster: Cluster, run: Json, event: RecentEvent) -> None:
    """Record an event of a run, once however often this is called."""
    facts = (run["metadata"]["uid"], event.at.isoformat(), event.reason, event.message)
    name = sha256("\0".join(facts).encode()).hexdigest()[:16]
    await cluster.emit_event(run, event.type, event.reason, event.message, name=name, at=event.at)


def _recent(events: Iterable[RecentEvent], now: datetime, seconds: float) -> Iterator[RecentEvent]:
    return (event for event in events if abs(now - event.at) < timedelta(seconds=seconds))
