"""The object store of the simulated cluster, and an operator that may die at any write to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import FIELD_MANAGER, KIND
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.simulation.queue import PodGroupQueue


class OperatorCrash(Exception):
    """The operator died at this write; see Objects.crash_at."""


def received(data: Any) -> Any:
    """What comes of data when it is sent as JSON."""
    return json.loads(json.dumps(data))


def clone(data: Any) -> Any:
    """A deep copy of what is stored, JSON data, several times faster than copy.deepcopy or the way over its text."""
    if isinstance(data, dict):
        return {name: clone(value) if isinstance(value, (dict, list)) else value for name, value in data.items()}
    return [clone(value) if isinstance(value, (dict, list)) else value for value in data]


class Objects:
    """The objects of one run and the time. Implements the operator's `Cluster`, apart from nodes."""

    def __init__(self, start: datetime) -> None:
        """Nothing is stored yet; simulated time begins at `start`."""
        self.now = start
        """The simulated time; may be moved forward between passes, in which case nothing happens meanwhile."""
        self.version = 1
        """The newest resourceVersion."""
        self.objects: dict[tuple[str, str], Json] = {}
        """By kind and name."""
        self.queue: PodGroupQueue | None = None
        """Admits pods; without one they go straight to the scheduler."""
        self.writes = 0
        """Writes of the operator so far, Events apart."""
        self.crash_at: int | None = None
        """The write at which the operator dies: OperatorCrash."""
        self.crash_after = False
        """It dies after that write took effect, not before."""
        self.events: list[tuple[str, str]] = []
        self._event_names: set[str] = set()
        """Reason and message of every Event."""
        self.departed: dict[str, Json] = {}
        """Pods as they were when they were deleted, by uid: what a watch tells. Whoever was told clears it."""

    @property
    def run(self) -> Json:
        """The run's object as the simulated API server stores it; changing it changes the cluster."""
        return next(body for (kind, _), body in self.objects.items() if kind == KIND)

    def pods(self) -> list[Json]:
        """Every Pod object, as it is stored."""
        return [body for (kind, _), body in self.objects.items() if kind == "Pod"]

    def stamp(self) -> str:
        """Now, as the API server writes it."""
        return rfc3339(self.now)

    def put(self, kind: str, body: Json) -> None:
        """Store an object as the API server would: with a uid, a time of creation and a new resourceVersion."""
        self.version += 1
        head = body["metadata"]
        head.setdefault("uid", f"{kind.lower()}-{head['name']}-{self.version}")
        head.setdefault("creationTimestamp", self.stamp())
        head["resourceVersion"] = str(self.version)
        if kind == "Pod":
            body.setdefault("status", {"phase": "Pending"})
            if self.queue is not None and head["name"] not in self.queue.known:
                self.queue.gate(body)
        self.objects[kind, head["name"]] = body

    def remove(self, kind: str, name: str) -> None:
        """An object goes, or is marked for deletion while it has finalizers."""
        head = self.objects[kind, name]["metadata"]
        if head.get("finalizers"):
            head.setdefault("deletionTimestamp", self.stamp())
            return
        if self.queue is not None and kind == "Pod":
            self.queue.known.discard(name)
        body = self.objects.pop((kind, name))
        if kind == "Pod":
            self.departed[head["uid"]] = body

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object; see Cluster.get."""
        if (kind, name) not in self.objects:
            raise NotFound(f"{kind} {namespace}/{name}")
        body: Json = clone(self.objects[kind, name])
        return body

    async def read(self, kind: str, namespace: str, name: str) -> Json:
        """The object; there is no cache. See Cluster.read."""
        return await self.get(kind, namespace, name)

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels, of the one namespace that there is; see Cluster.list."""
        del namespace
        found = [body for (k, _), body in self.objects.items() if k == kind]
        wanted = labels or {}
        fits = [b for b in found if all(b["metadata"].get("labels", {}).get(k) == v for k, v in wanted.items())]
        bodies: list[Json] = clone(fits)
        return bodies

    async def apply(self, manifest: Json, manager: str = FIELD_MANAGER) -> Json:
        """Create the object, or merge what the operator changes of it; see Cluster.apply."""
        del manager
        self._before_write()
        kind, head = manifest["kind"], manifest["metadata"]
        current = self.objects.get((kind, head["name"]))
        for name in ("uid", "resourceVersion"):
            if name in head and (current is None or current["metadata"][name] != head[name]):
                raise Conflict(f"{kind} {head['name']} {name}")
        if current is None:
            assert kind != "Pod" or "spec" in manifest, "a patch never creates a pod"
            self.put(kind, received(manifest))
        else:
            assert not current.get("immutable") or current.get("data") == manifest.get("data")
            assert kind != "Pod" or "spec" not in manifest, "a pod is created once"
            merged = clone(current)
            for part in ("annotations", "labels"):
                merged["metadata"].setdefault(part, {}).update(head.get(part, {}))
            merged["metadata"] |= {"ownerReferences": head["ownerReferences"]} if "ownerReferences" in head else {}
            merged["metadata"] |= {"finalizers": head["finalizers"]} if "finalizers" in head else {}
            merged |= {key: received(manifest[key]) for key in ("data", "spec") if key in manifest}
            self.put(kind, merged)
        self._after_write()
        body: Json = clone(self.objects[kind, head["name"]])
        return body

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Ask for deletion: a pod that runs has time to save; see Cluster.delete."""
        self._before_write()
        current = self.objects.get((kind, name))
        if current is not None:
            if uid is not None and current["metadata"]["uid"] != uid:
                raise Conflict(f"{kind} {namespace}/{name} has another uid")
            if kind == "Pod" and grace_seconds != 0 and current["status"]["phase"] == "Running":
                current["metadata"].setdefault("deletionTimestamp", self.stamp())
            else:
                self.remove(kind, name)
        self._after_write()

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write the status; see Cluster.replace_status."""
        self._before_write()
        current = self.objects.get((kind, name))
        if current is None:
            raise NotFound(f"{kind} {namespace}/{name}")
        if current["metadata"]["resourceVersion"] != resource_version:
            raise Conflict(f"{kind} {name} changed")
        self.put(kind, clone(current) | {"status": received(status)})
        self._after_write()
        body: Json = clone(self.objects[kind, name])
        return body

    async def emit_event(
        self, regarding: Json, type_: str, reason: str, message: str, *, name: str = "", at: datetime | None = None
    ) -> None:
        """Record an Event in `events`; see Cluster.emit_event."""
        del regarding, type_, at
        if name and name in self._event_names:
            return
        self._event_names.add(name)
        self.events.append((reason, message))

    def _before_write(self) -> None:
        self.writes += 1
        if self.crash_at == self.writes and not self.crash_after:
            raise OperatorCrash(f"before write {self.writes}")

    def _after_write(self) -> None:
        if self.crash_at == self.writes and self.crash_after:
            raise OperatorCrash(f"after write {self.writes}")
