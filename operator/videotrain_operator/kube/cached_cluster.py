"""The Cluster of a real API server: reads from informer caches, writes through the client behind a fence."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Final

from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import API_VERSION, BUDGET_KIND, FIELD_MANAGER, KIND, LABEL_RUN_UID
from videotrain_operator.cluster.interface import Conflict, NamespaceGoing, NotFound
from videotrain_operator.cluster.missing import owners_of
from videotrain_operator.cluster.recent_events import RECORD_SECONDS
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.client import ApiError, ApiUnavailable, KubeClient
from videotrain_operator.kube.trim import trim

CACHED: Final = ("Pod", "ConfigMap", "NetworkPolicy", "Node", KIND, BUDGET_KIND)
"""Kinds that are read from the cache; any other is read from the server."""
POD_PATIENCE_SECONDS: Final = 5.0
EVENT_PATIENCE_SECONDS: Final = 60.0
"""How long other requests go before the creation of a pod, and before an event."""
MOST_EVENTS: Final = 10_000
"""Events that wait to be recorded; more are only logged."""
FIRST_EVENT_PAUSE_SECONDS: Final = 1.0
LONGEST_EVENT_PAUSE_SECONDS: Final = 30.0
"""After how long an event is tried again while the server does not answer."""
_log = logging.getLogger(__name__)


class NameTakenError(ApiError):
    """An object of the name that a run needs exists and belongs to somebody else."""


class KubeCluster:
    """Implements `videotrain_operator.cluster.interface.Cluster`.

    Reading never waits: what informers and our own writes have told is what is known. Writing checks the fence
    when a request is sent, and again when it is repeated, so a replica that lost its lease changes nothing.
    """

    def __init__(self, client: KubeClient, stores: Mapping[str, Store], fence: Callable[[], None], host: str) -> None:
        """Wrap a client.

        Args:
            client: where to write.
            stores: a cache of each of CACHED, by kind.
            fence: raises if this process must not write.
            host: who reports events.
        """
        self._client, self._unfenced = client.fenced(fence), client
        self._stores = stores
        self._host = host
        self._events: set[asyncio.Task[None]] = set()

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object; see Cluster.get."""
        if kind not in CACHED:
            return await self._client.get(kind, namespace, name)
        body = self._stores[kind].get(Key(namespace, name))
        if body is None:
            raise NotFound(f"{kind} {namespace}/{name}")
        return body

    async def read(self, kind: str, namespace: str, name: str) -> Json:
        """The object as the server has it; see Cluster.read."""
        return await self._client.get(kind, namespace, name)

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels; see Cluster.list."""
        if kind not in CACHED:
            return await self._client.list(kind, namespace, _selector(labels or {}))
        store = self._stores[kind]
        run = (labels or {}).get(LABEL_RUN_UID)
        found = store.of_run(run) if run else store.all(namespace)
        wanted = (labels or {}).items()
        return [body for body in found if wanted <= (body["metadata"].get("labels") or {}).items()]

    async def apply(self, manifest: Json, manager: str = FIELD_MANAGER) -> Json:
        """Create the object, or change the existing one; see Cluster.apply.

        What is not in the cache is created by POST: applying to a name would silently merge into a stranger's object.
        What is there is changed only while it is the object that was seen, by its uid.

        Raises:
            Conflict: a precondition does not hold, or the cache was behind: look again.
            NameTakenError: a stranger's object has the name.
        """
        kind, head = manifest["kind"], manifest["metadata"]
        if kind == "Secret":
            return await self._create_secret(manifest, manager)
        store = self._stores[kind]
        known = store.get(Key(head.get("namespace", "default"), head["name"]))
        if "uid" in head and kind == "Pod":
            body = await self._patch_head(manifest, manager)
        elif known is None or _uid_of_run(known) != _uid_of_run(manifest):
            if "resourceVersion" in head:
                raise Conflict(f"{kind} {head['name']} was there when the pass began, and is gone")
            body = await self._create(manifest, manager)
        elif kind == "ConfigMap":
            body = await self._replace_data(manifest, known["metadata"]["uid"], manager)
        else:
            seen = head | {"uid": known["metadata"]["uid"]}
            body = await self._client.apply(manifest | {"metadata": seen}, manager)
        store.put(trim(body))
        return body

    async def _create(self, manifest: Json, manager: str) -> Json:
        try:
            return await self._post(manifest, manager)
        except NamespaceGoing:
            raise
        except Conflict as error:
            try:
                await self._explain_taken(manifest)
            except NotFound:
                raise error from None  # it has gone meanwhile; the run has not
            raise

    async def _create_secret(self, manifest: Json, manager: str) -> Json:
        """Immutable, and named by what it holds: one that has the name already is the one that is wanted."""
        try:
            return await self._post(manifest, manager)
        except NamespaceGoing:
            raise
        except Conflict:
            return manifest

    async def _post(self, manifest: Json, manager: str) -> Json:
        # New pods come last: whatever there is of runs that have theirs, a roster above all, is paid for by the second.
        patience = POD_PATIENCE_SECONDS if manifest["kind"] == "Pod" else 0.0
        try:
            return await self._client.create(manifest, manager, patience=patience)
        except ApiError as error:
            if error.status == HTTPStatus.FORBIDDEN and "is being terminated" in str(error):
                raise NamespaceGoing(str(error)) from error  # and the run is about to go with it
            raise

    async def _explain_taken(self, manifest: Json) -> None:
        """Learn the object that has the name: ours (the cache was behind), a predecessor's on its way out, or alien.

        Raises:
            Conflict: it has changed meanwhile.
            NameTakenError: it is alien; it was left as it is.
        """
        kind, head = manifest["kind"], manifest["metadata"]
        namespace, name = head.get("namespace", "default"), head["name"]
        body = await self._client.get(kind, namespace, name)
        ours, owners = _uid_of_run(manifest), owners_of(body)
        if ours in owners and not head["labels"].items() <= (body["metadata"].get("labels") or {}).items():
            # Only labels tell the cache that it is there, and somebody has changed them.
            precondition = {key: body["metadata"][key] for key in ("uid", "resourceVersion")}
            patch = {"metadata": precondition | {"labels": head["labels"]}}
            body = await self._client.patch(kind, namespace, name, patch, manager=FIELD_MANAGER)
        if ours in (_uid_of_run(body), *owners):
            self._stores[kind].put(trim(body))
        elif _uid_of_run(body) not in owners and "deletionTimestamp" not in body["metadata"]:
            # Nobody would ever take it away, as the collector of garbage does with what a run before has left.
            message = f"{kind} {namespace}/{name} exists and belongs to no run; delete it or rename the run"
            raise NameTakenError(409, "NameTaken", message)

    async def _patch_head(self, manifest: Json, manager: str) -> Json:
        """The pod of that uid: only metadata changes."""
        head = manifest["metadata"]
        metadata = {key: value for key, value in head.items() if key not in ("name", "namespace")}
        namespace = head.get("namespace", "default")
        try:
            return await self._client.patch("Pod", namespace, head["name"], {"metadata": metadata}, manager=manager)
        except NotFound as error:
            raise Conflict(str(error)) from error

    async def _replace_data(self, manifest: Json, uid: str, manager: str) -> Json:
        """A config map of ours, whose keys are always the same: a merge costs the server half of an apply."""
        head = manifest["metadata"]
        metadata = {key: head[key] for key in ("resourceVersion", "labels") if key in head} | {"uid": uid}
        patch = {"metadata": metadata, "data": manifest["data"]}
        namespace = head.get("namespace", "default")
        try:
            return await self._client.patch("ConfigMap", namespace, head["name"], patch, manager=manager)
        except NotFound as error:
            raise Conflict(str(error)) from error

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        """Ask for deletion; see Cluster.delete."""
        propagation = "Background" if kind == KIND else None
        answer = await self._client.delete(
            kind, namespace, name, uid=uid, grace_seconds=grace_seconds, propagation=propagation
        )
        if kind in CACHED and answer is not None and answer.get("kind") == kind:
            self._note_deletion(trim(answer))

    def _note_deletion(self, body: Json) -> None:
        """A pod that is not stopped gracefully is gone at once; any other stays until its end is confirmed."""
        head = body["metadata"]
        store = self._stores[body["kind"]]
        if head.get("deletionGracePeriodSeconds") or head.get("finalizers"):
            store.put(body)
        else:
            store.remove(body, ours=True)

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write the status subresource; see Cluster.replace_status."""
        metadata = {"name": name, "namespace": namespace, "resourceVersion": resource_version}
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "status": status}
        body = await self._client.replace(manifest, subresource="status", manager=FIELD_MANAGER)
        self._stores[kind].put(trim(body))
        return body

    async def emit_event(
        self, regarding: Json, type_: str, reason: str, message: str, *, name: str = "", at: datetime | None = None
    ) -> None:
        """Record an Event, soon: no pass waits for what people read; see Cluster.emit_event."""
        event = self._event(regarding, type_, reason, message, name, at or self._client.clock.now())
        about, level = event["involvedObject"], logging.WARNING if type_ == "Warning" else logging.INFO
        # The cluster forgets events within an hour, and may never get this one.
        _log.log(level, "%s event %s: %s", _named(about), reason, message)
        if len(self._events) >= MOST_EVENTS:
            _not_recorded(event, f"{MOST_EVENTS} others wait")
            return
        task = asyncio.create_task(self._record(event))
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _record(self, event: Json) -> None:
        """Record it, after an outage of the server if need be: the status has it already, so nobody tells it again.

        Past the fence: it tells what this process did while it led, under a name that is its own.
        """
        ends, pause = time.monotonic() + RECORD_SECONDS, FIRST_EVENT_PAUSE_SECONDS
        while True:
            try:
                await self._unfenced.create(event, FIELD_MANAGER, patience=EVENT_PATIENCE_SECONDS)
            except ApiUnavailable as error:
                if time.monotonic() < ends:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_EVENT_PAUSE_SECONDS)
                    continue
                _not_recorded(event, error)
            except Conflict as error:
                if isinstance(error, NamespaceGoing):
                    _not_recorded(event, error)  # else it is recorded, by a request whose answer was lost or by another
            except (ApiError, NotFound) as error:
                _not_recorded(event, error)
            return

    def _event(self, regarding: Json, type_: str, reason: str, message: str, name: str, at: datetime) -> Json:
        head = regarding["metadata"]
        now = rfc3339(at, "seconds")
        namespace = head.get("namespace", "default")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{head['name']}.{name or uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": regarding.get("apiVersion", API_VERSION),
                "kind": regarding.get("kind", KIND),
                "name": head["name"],
                "namespace": head.get("namespace", ""),
                "uid": head["uid"],
                "resourceVersion": head.get("resourceVersion", ""),
            },
            "type": type_,
            "reason": reason,
            "message": message[:1024],
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": FIELD_MANAGER, "host": self._host},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._host,
        }


def _not_recorded(event: Json, why: object) -> None:
    about = event["involvedObject"]
    _log.warning("%s event %s was not recorded: %s", _named(about), event["reason"], why)


def _named(about: Json) -> str:
    if about["kind"] == KIND:
        return f"run={about['namespace']}/{about['name']}"
    return f"{about['kind']}={'/'.join(filter(None, (about['namespace'], about['name'])))}"


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _uid_of_run(body: Json) -> str | None:
    uid: str | None = (body["metadata"].get("labels") or {}).get(LABEL_RUN_UID)
    return uid
