"""The few operations that observing and applying need from a cluster.

Two things implement it: the embedded cluster of the `videotrain` command and a real API server's client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

Json = dict[str, Any]


class WatchEvent(NamedTuple):
    """One change of an object."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Json


class Conflict(Exception):
    """A precondition (resourceVersion, uid) does not hold, or the name is taken: look again and plan again."""


class NotFound(Exception):
    """There is no such object."""


class Cluster(Protocol):
    """Access to namespaced objects of the kinds VideoTrainingRun, Pod, Service, ConfigMap, Secret and Event, and Node."""

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object.

        Raises:
            NotFound: there is none.
        """

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels, oldest first."""

    async def apply(self, manifest: Json) -> Json:
        """Create the object, or merge it into the existing one, as server-side apply with FIELD_MANAGER does.

        A `metadata.uid` or `metadata.resourceVersion` in the manifest is a precondition. `status` is never touched.

        Raises:
            Conflict: the precondition does not hold.
        """

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Ask for deletion; owned objects follow. Nothing happens if the object is gone.

        Raises:
            Conflict: an object of that name exists with another uid.
        """

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write the status subresource.

        Raises:
            Conflict: the object is no longer at that resourceVersion.
            NotFound: it is gone.
        """

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        """Record an Event about an object."""

    def watch(self, kind: str, namespace: str) -> AsyncIterator[WatchEvent]:
        """Changes from now on, until the iterator is closed."""
