"""Pods that are on record and missing from the list: only a read by name tells whether one is gone.

A watch that selects by labels tells of a pod whose labels somebody changed as it does of one that was deleted, and what
it told may be old. Such a pod goes on training, and costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from videotrain_api.records import Roster
from videotrain_api.render.names import pod_name
from videotrain_api.schema import Json
from videotrain_operator.accounting.attribution import microseconds
from videotrain_operator.accounting.ledger import ROUNDED_US
from videotrain_operator.accounting.stored_ledger import awaited_in, open_pods
from videotrain_operator.cluster.interface import Cluster, NotFound

READS_PER_PASS: Final = 64
"""More pods than that are not gone at once, or the next passes will tell."""


class Sought(NamedTuple):
    """A pod that should be in the list."""

    name: str
    uid: str | None
    """None for one that was noted before it was made."""
    since: int = 0
    """When it was noted, in microseconds since 1970: what got the name later is the one that was made."""


@dataclass(frozen=True)
class Found:
    """What became of missing pods."""

    there: tuple[Json, ...] = ()
    """Pods that the list lacks and the server has."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Uids by name of those that were not read: too many at once."""


def on_record(name: str, ledger: Mapping[str, Any] | None, roster: Roster | None) -> Iterable[Sought]:
    """Pods that ledger and roster know and of which no end is known.

    Args:
        name: of the run.
        ledger: as stored.
        roster: as published; None if its world is on record as ended.
    """
    for uid, pod in open_pods(ledger or {}):
        yield Sought(pod, uid)
    for member in roster.members if roster is not None else ():
        yield Sought(member.pod, member.uid)
    for number, note in awaited_in(ledger or {}).items():
        yield Sought(pod_name(name, number), None, note.since)


async def seek(
    cluster: Cluster, run: Json, listed: Sequence[Json], departed: Sequence[Json], sought: Iterable[Sought]
) -> Found:
    """Read by name what is sought and not listed, and what a watch told to be deleted before it had ended.

    Args:
        cluster: where to look.
        run: the run object.
        listed: pods of the list.
        departed: pods as they were when a watch told that they were deleted.
        sought: pods that should be there.
    """
    uids = {body["metadata"]["uid"] for body in listed}
    names = {body["metadata"]["name"] for body in listed}
    ended = {body["metadata"]["uid"] for body in departed if _has_ended(body)}
    told = [Sought(body["metadata"]["name"], body["metadata"]["uid"]) for body in departed]
    known = uids | ended
    absent = (each for each in (*sought, *told) if (each.uid not in known if each.uid else each.name not in names))
    chosen = list(dict.fromkeys(absent))
    namespace = run["metadata"].get("namespace", "default")
    bodies = await asyncio.gather(*(_read(cluster, namespace, each.name) for each in chosen[:READS_PER_PASS]))
    there = [
        body
        for each, body in zip(chosen, bodies, strict=False)
        if body is not None and (body["metadata"]["uid"] == each.uid if each.uid else _is_made(body, each.since))
    ]
    left = {each.name: each.uid or "" for each in chosen[READS_PER_PASS:]}
    return Found(tuple(there), left)


def owners_of(body: Json) -> list[str]:
    """Uids of an object's owners."""
    return [owner["uid"] for owner in body["metadata"].get("ownerReferences") or []]


def _is_made(body: Json, since: int) -> bool:
    created = microseconds(datetime.fromisoformat(body["metadata"]["creationTimestamp"]))
    return created >= since - ROUNDED_US


def _has_ended(body: Json) -> bool:
    status = body.get("status") or {}
    ended = [(item.get("state") or {}).get("terminated") for item in status.get("containerStatuses") or []]
    return status.get("phase") in ("Succeeded", "Failed") or (bool(ended) and all(ended))


async def _read(cluster: Cluster, namespace: str, name: str) -> Json | None:
    try:
        return await cluster.read("Pod", namespace, name)
    except NotFound:
        return None
