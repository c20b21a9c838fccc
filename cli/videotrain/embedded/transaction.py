"""One write to the object store, with everything that follows from it: finalisation, removal, garbage collection."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from videotrain.clock import parse_time
from videotrain.embedded.database import Key, Row
from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_operator.cluster.interface import WatchEvent

DEFAULT_GRACE_SECONDS: Final = 30
"""Kubernetes' default terminationGracePeriodSeconds."""


class Transaction:
    """Changes that become visible together. Bodies that were put are never changed afterwards."""

    def __init__(self, rows: Mapping[Key, Row], resource_version: int, now: str) -> None:
        self._rows = rows
        self.resource_version = resource_version
        self._now = now
        self.changed: dict[Key, Row | None] = {}
        self.events: list[WatchEvent] = []

    def get(self, key: Key) -> Row | None:
        """The row as this transaction sees it."""
        return self.changed[key] if key in self.changed else self._rows.get(key)

    def put(self, key: Key, body: Json, applied: dict[str, Json]) -> None:
        """Create or replace an object; it gets the next resourceVersion."""
        before = self.get(key)
        self.resource_version += 1
        body["metadata"]["resourceVersion"] = str(self.resource_version)
        sequence = before.sequence if before else self.resource_version
        self.changed[key] = Row(sequence, body, applied)
        self.events.append(WatchEvent("MODIFIED" if before else "ADDED", body))

    def request_deletion(self, key: Key, grace_seconds: int | None) -> None:
        """Set or shorten the deletion deadline of an object; settle() removes it once nothing holds it back."""
        row = self.get(key)
        if row is None:
            return
        grace = _grace(row.body, grace_seconds)
        deadline = rfc3339(parse_time(self._now) + timedelta(seconds=grace), "microseconds")
        before = row.body["metadata"]
        if "deletionTimestamp" in before:
            confirmed = grace == 0 and before["deletionGracePeriodSeconds"] > 0
            if before["deletionTimestamp"] <= deadline and not confirmed:
                return
            deadline = min(deadline, before["deletionTimestamp"])
        body = copy.deepcopy(row.body)
        body["metadata"] |= {"deletionTimestamp": deadline, "deletionGracePeriodSeconds": grace}
        self.put(key, body, row.applied)

    def settle(self) -> None:
        """Remove what is ready to go and what has lost its owners, until nothing more follows."""
        while self._step():
            pass

    def _step(self) -> bool:
        view = dict(self._view())
        for key, row in view.items():
            if _removable(row.body):
                self._remove(key, row)
                return True
        uids = {row.body["metadata"]["uid"] for row in view.values()}
        for key, row in view.items():
            if _orphaned(row.body, uids):
                self.request_deletion(key, None)
                return True
        return False

    def _view(self) -> Iterator[tuple[Key, Row]]:
        for key in {**self._rows, **self.changed}:
            row = self.get(key)
            if row is not None:
                yield key, row

    def _remove(self, key: Key, row: Row) -> None:
        self.resource_version += 1
        last = copy.deepcopy(row.body)
        last["metadata"]["resourceVersion"] = str(self.resource_version)
        self.changed[key] = None
        self.events.append(WatchEvent("DELETED", last))


def _grace(body: Json, asked: int | None) -> int:
    if body["kind"] != "Pod" or stopped(body):
        return 0
    default = body.get("spec", {}).get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    return int(default if asked is None else asked)


def stopped(pod: Json) -> bool:
    """Nothing of the pod runs any more, or ever did: it needs no grace."""
    unbound = not pod.get("spec", {}).get("nodeName")
    return unbound or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _removable(body: Json) -> bool:
    metadata = body["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    # A pod with grace left stays, even if it has ended, until its node confirms by deleting it with grace 0.
    return body["kind"] != "Pod" or (stopped(body) and metadata["deletionGracePeriodSeconds"] == 0)


def _orphaned(body: Json, uids: set[str]) -> bool:
    owners = body["metadata"].get("ownerReferences")
    if not owners or "deletionTimestamp" in body["metadata"]:
        return False
    return all(owner["uid"] not in uids for owner in owners)
