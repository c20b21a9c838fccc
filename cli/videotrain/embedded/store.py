"""The embedded cluster: what a Kubernetes API server promises, for the few kinds that a run needs.

Everything happens on one event loop thread, so every method is atomic. A write is committed to the database before
anyone can see it.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from videotrain.clock import utc_now
from videotrain.embedded.database import Database, Key, Row
from videotrain.embedded.merge import apply_manifest, merge_patch
from videotrain.embedded.transaction import Transaction
from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import FIELD_MANAGER, KIND
from videotrain_operator.cluster.interface import Conflict, NotFound, WatchEvent


class _Kind(NamedTuple):
    namespaced: bool = True
    counts_generations: bool = False


_KINDS: Final[Mapping[str, _Kind]] = {
    KIND: _Kind(counts_generations=True),
    "Pod": _Kind(counts_generations=True),
    "Service": _Kind(),
    "ConfigMap": _Kind(),
    "Secret": _Kind(),
    "NetworkPolicy": _Kind(),
    "Event": _Kind(),
    "Node": _Kind(namespaced=False),
}
_SERVER_FIELDS: Final = frozenset(
    {"uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink"}
    | {"deletionTimestamp", "deletionGracePeriodSeconds"}
)


class InvalidObjectError(Exception):
    """The object cannot be stored: an API server would answer 422."""


class EmbeddedCluster:
    """Durable objects with resourceVersions, owners, graceful deletion and watches.

    Implements `videotrain_operator.cluster.interface.Cluster` and the binding that a process node needs.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the database file.

        Raises:
            sqlite3.Error: the file is no database, or cannot be written.
            StoreError: another version of the format.
        """
        path.touch(mode=0o600)
        self._database = Database(path)
        self._rows, self._version = self._database.load()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()

    def close(self) -> None:
        """End all watches and close the database."""
        for watch in list(self._watches):
            watch.end()
        self._database.close()

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object; see Cluster.get."""
        return copy.deepcopy(self._row(_key(kind, namespace, name)).body)

    async def read(self, kind: str, namespace: str, name: str) -> Json:
        """The object; there is no cache. See Cluster.read."""
        return await self.get(kind, namespace, name)

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels, oldest first; see Cluster.list."""
        scope = _key(kind, namespace, "").namespace
        rows = [row for key, row in self._rows.items() if key.kind == kind and key.namespace == scope]
        found = [row for row in rows if _carries(row.body, labels or {})]
        return [copy.deepcopy(row.body) for row in sorted(found, key=lambda row: row.sequence)]

    async def apply(self, manifest: Json, manager: str = FIELD_MANAGER) -> Json:
        """Create or merge; see Cluster.apply.

        Raises:
            Conflict: the precondition does not hold.
            InvalidObjectError: an immutable object or field would change.
        """
        key = _key(manifest.get("kind", ""), *_name(manifest))
        wanted = _wanted(manifest, key)
        row = self._rows.get(key)
        _check_preconditions(key, row, manifest["metadata"])
        if row is None:
            return self._commit(key, _created(wanted, key), {manager: wanted})
        others = [last for name, last in row.applied.items() if name != manager]
        body = apply_manifest(row.body, row.applied.get(manager, {}), wanted, others)
        return self._update(key, row, body, row.applied | {manager: wanted})

    async def patch(self, kind: str, namespace: str, name: str, patch: Json, *, uid: str | None = None) -> Json:
        """A user's edit: JSON merge patch on everything but status and what the server sets.

        Raises:
            NotFound: there is no such object.
            Conflict: it has another uid.
            InvalidObjectError: an immutable object or field would change.
        """
        key = _key(kind, namespace, name)
        row = self._row(key)
        _check_preconditions(key, row, {"uid": uid} if uid else {})
        return self._update(key, row, merge_patch(row.body, _writable(patch)), row.applied)

    async def bind(self, namespace: str, name: str, uid: str, node: str) -> Json:
        """Assign a pod to a node; the PodScheduled condition says when.

        Raises:
            NotFound: the pod is gone.
            Conflict: it is another pod, is being deleted or already has a node.
        """
        key = _key("Pod", namespace, name)
        row = self._row(key)
        _check_preconditions(key, row, {"uid": uid})
        if row.body["spec"].get("nodeName") or "deletionTimestamp" in row.body["metadata"]:
            raise Conflict(f"pod {name} already has a node or is being deleted")
        body = copy.deepcopy(row.body)
        body["spec"]["nodeName"] = node
        set_condition(body, "PodScheduled", "True")
        return self._commit(key, body, row.applied)

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Ask for deletion; see Cluster.delete. A bound pod stays until its node has stopped it."""
        key = _key(kind, namespace, name)
        row = self._rows.get(key)
        if row is None:
            return
        _check_preconditions(key, row, {"uid": uid} if uid else {})
        self._transact(lambda change: change.request_deletion(key, grace_seconds))

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write the status subresource; see Cluster.replace_status."""
        key = _key(kind, namespace, name)
        row = self._row(key)
        _check_preconditions(key, row, {"resourceVersion": resource_version})
        body = copy.deepcopy(row.body) | {"status": copy.deepcopy(status)}
        return self._update(key, row, body, row.applied, status=True)

    async def emit_event(
        self, regarding: Json, type_: str, reason: str, message: str, *, name: str = "", at: datetime | None = None
    ) -> None:
        """Record an Event about an object; one without a name that says the same again is counted."""
        metadata = regarding["metadata"]
        about = {name: metadata[name] for name in ("name", "namespace", "uid") if name in metadata}
        about |= {"kind": regarding["kind"], "apiVersion": regarding.get("apiVersion", "v1")}
        text = "\n".join((metadata.get("uid", ""), type_, reason, message))
        own = f"{metadata['name']}.{name or uuid.uuid5(uuid.NAMESPACE_OID, text).hex[:16]}"
        key = _key("Event", metadata.get("namespace", "default"), own)
        before, now = self._rows.get(key), utc_now() if at is None else rfc3339(at, "microseconds")
        if before is not None:
            if name:
                return
            body = before.body | {"lastTimestamp": now, "count": before.body["count"] + 1}
            self._commit(key, copy.deepcopy(body), before.applied)
            return
        content = {"involvedObject": about, "type": type_, "reason": reason, "message": message, "count": 1}
        source = {"source": {"component": FIELD_MANAGER}, "firstTimestamp": now, "lastTimestamp": now}
        head = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": own, "namespace": key.namespace}}
        self._commit(key, _created(head | content | source, key), {})

    def watch(self, kind: str, namespace: str) -> AsyncIterator[WatchEvent]:
        """Changes from now on; see Cluster.watch."""
        watch = Watch(kind, _key(kind, namespace, "").namespace)
        self._watches.add(watch)
        return watch

    def _row(self, key: Key) -> Row:
        if key not in self._rows:
            raise NotFound(f"{key.kind} {key.namespace}/{key.name} does not exist")
        return self._rows[key]

    def _update(self, key: Key, row: Row, body: Json, applied: dict[str, Json], *, status: bool = False) -> Json:
        if body == row.body:
            # An apply without effect wakes nobody; otherwise two writers could wake each other for ever.
            if applied != row.applied:
                self._database.commit({key: Row(row.sequence, row.body, applied)}, self._version)
                row.applied = applied
            return copy.deepcopy(row.body)
        if not status:
            _check_immutable(key, row.body, body)
            _count_generation(key, row.body, body)
        return self._commit(key, body, applied)

    def _commit(self, key: Key, body: Json, applied: dict[str, Json]) -> Json:
        self._transact(lambda change: change.put(key, body, applied))
        return copy.deepcopy(body)

    def _transact(self, write: Callable[[Transaction], None]) -> None:
        change = Transaction(self._rows, self._version, utc_now())
        write(change)
        change.settle()
        if not change.changed:
            return
        self._database.commit(change.changed, change.resource_version)
        self._version = change.resource_version
        for key, row in change.changed.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row
        for event in change.events:
            for watch in list(self._watches):
                watch.offer(event)


class Watch:
    """A queue of changes of one kind; iterate it, and close it when done."""

    def __init__(self, kind: str, namespace: str) -> None:
        self._kind = kind
        self._namespace = namespace
        self._queue: asyncio.Queue[WatchEvent | None] = asyncio.Queue()
        self._ended = False

    def offer(self, event: WatchEvent) -> None:
        """Queue a change if it is of the watched kind and namespace."""
        body = event.object
        if body["kind"] == self._kind and body["metadata"].get("namespace", "") == self._namespace and not self._ended:
            self._queue.put_nowait(WatchEvent(event.type, copy.deepcopy(body)))

    def end(self) -> None:
        """No more changes; the iteration stops after those that are queued."""
        self._ended = True
        self._queue.put_nowait(None)

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchEvent:
        if self._ended and self._queue.empty():
            raise StopAsyncIteration
        event = await self._queue.get()
        if event is None:
            raise StopAsyncIteration
        return event


def set_condition(body: Json, type_: str, status: str, reason: str = "", message: str = "") -> bool:
    """Set a condition of an object in place; its transition time moves only if its status changed.

    Returns:
        Whether anything changed.
    """
    conditions = body.setdefault("status", {}).setdefault("conditions", [])
    before = next((item for item in conditions if item["type"] == type_), None)
    item = {"type": type_, "status": status} | ({"reason": reason} if reason else {})
    item |= {"message": message} if message else {}
    same = before is not None and before["status"] == status
    item["lastTransitionTime"] = before["lastTransitionTime"] if before is not None and same else utc_now()
    if item == before:
        return False
    body["status"]["conditions"] = [other for other in conditions if other["type"] != type_] + [item]
    return True


def _key(kind: str, namespace: str, name: str) -> Key:
    if kind not in _KINDS:
        raise InvalidObjectError(f"kind {kind!r}: this cluster knows {', '.join(_KINDS)}")
    return Key(kind, namespace if _KINDS[kind].namespaced else "", name)


def _name(manifest: Json) -> tuple[str, str]:
    metadata = manifest.get("metadata", {})
    if not metadata.get("name"):
        raise InvalidObjectError(f"metadata.name of a {manifest.get('kind')}: this field is required")
    return metadata.get("namespace", "default"), metadata["name"]


def _writable(manifest: Json) -> Json:
    """A manifest without status and without what only the server sets."""
    body = {name: value for name, value in manifest.items() if name != "status"}
    if "metadata" in body:
        body["metadata"] = {name: value for name, value in body["metadata"].items() if name not in _SERVER_FIELDS}
    return copy.deepcopy(body)


def _wanted(manifest: Json, key: Key) -> Json:
    body = _writable(manifest)
    body["metadata"] |= {"name": key.name} | ({"namespace": key.namespace} if key.namespace else {})
    return body


def _created(wanted: Json, key: Key) -> Json:
    body = copy.deepcopy(wanted)
    body["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": utc_now()}
    if _KINDS[key.kind].counts_generations:
        body["metadata"]["generation"] = 1
    if key.kind == "Pod":
        body["status"] = {"phase": "Pending"}
    return body


def _check_preconditions(key: Key, row: Row | None, expected: Json) -> None:
    for name in ("uid", "resourceVersion"):
        if not expected.get(name):
            continue
        actual = row.body["metadata"][name] if row else "nothing, the object does not exist"
        if actual != expected[name]:
            raise Conflict(f"{key.kind} {key.namespace}/{key.name}: {name} {expected[name]} expected, found {actual}")


def _check_immutable(key: Key, before: Json, after: Json) -> None:
    if key.kind in ("ConfigMap", "Secret") and before.get("immutable"):
        for name in ("data", "binaryData", "stringData", "immutable", "type"):
            if before.get(name) != after.get(name):
                raise InvalidObjectError(f"{key.kind} {key.name}: {name} is immutable; make one of another name")
    if key.kind == "Pod" and before.get("spec") != after.get("spec"):
        raise InvalidObjectError(f"Pod {key.name}: spec cannot be changed; delete the pod and make another")


def _count_generation(key: Key, before: Json, after: Json) -> None:
    if _KINDS[key.kind].counts_generations and before.get("spec") != after.get("spec"):
        after["metadata"] = after["metadata"] | {"generation": before["metadata"]["generation"] + 1}


def _carries(body: Json, labels: Mapping[str, str]) -> bool:
    carried = body["metadata"].get("labels") or {}
    return all(carried.get(name) == value for name, value in labels.items())
