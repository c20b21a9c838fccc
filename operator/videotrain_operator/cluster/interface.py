"""The few operations that observing and applying need from a cluster.

Two things implement it: the embedded cluster of the `videotrain` command and a real API server's client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from videotrain_api.schema import Json
from videotrain_api.vocabulary import FIELD_MANAGER


class WatchEvent(NamedTuple):
    """One change of an object."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Json


class Conflict(Exception):
    """A precondition (resourceVersion, uid) does not hold, or the name is taken: look again and plan again."""


class NamespaceGoing(Conflict):
    """The namespace is being deleted: nothing can be created in it."""


class NotFound(Exception):
    """There is no such object."""


class Cluster(Protocol):
    """Access to nodes and to namespaced objects: VideoTrainingRun, Pod, ConfigMap, Secret, NetworkPolicy and
    Event.
    """

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object. It may be shared: not to be changed.

        Raises:
            NotFound: there is none.
        """

    async def read(self, kind: str, namespace: str, name: str) -> Json:
        """The object as the server has it now, past every cache.

        Raises:
            NotFound: there is none.
        """

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels, oldest first. They may be shared: not to be changed."""

    async def apply(self, manifest: Json, manager: str = FIELD_MANAGER) -> Json:
        """Create the object, or merge it into the existing one, as server-side apply by that field manager does.

        A field that the same manager applied before and that is not in the manifest is removed, so what is written
        apart from the rest (what a queue is told) has a manager of its own.
        A `metadata.uid` or `metadata.resourceVersion` in the manifest is a precondition; an object that does not exist
        fulfils none. `status` is never touched.

        Raises:
            Conflict: the precondition does not hold.
        """

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        """Ask for the deletion of the object of that uid; owned objects follow. Nothing happens if it is gone.

        Raises:
            Conflict: an object of that name exists with another uid.
        """

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write the status subresource.

        Raises:
            Conflict: the object is no longer at that resourceVersion.
            NotFound: it is gone.
        """

    async def emit_event(
        self, regarding: Json, type_: str, reason: str, message: str, *, name: str = "", at: datetime | None = None
    ) -> None:
        """Record an Event about an object, now or soon; one that is refused is logged.

        Args:
            regarding: the object.
            type_: Normal or Warning.
            reason: in one word.
            message: for people.
            name: tells it apart from the other events of the object: another one of that name is not recorded. Any if
                empty.
            at: when it happened; now if None.
        """


class WatchedCluster(Cluster, Protocol):
    """A cluster whose changes can be followed too."""

    def watch(self, kind: str, namespace: str) -> AsyncIterator[WatchEvent]:
        """Changes from now on, until the iterator is closed."""
