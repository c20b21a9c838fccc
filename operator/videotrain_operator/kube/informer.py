"""List and watch one kind, through lost connections, expired versions and silence."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import NotFound, WatchEvent
from videotrain_operator.kube.cache import Store, key_of
from videotrain_operator.kube.client import ApiError, ApiUnavailable, KubeClient
from videotrain_operator.kube.kinds import KINDS
from videotrain_operator.kube.trim import trim

FIRST_BACKOFF_SECONDS: Final = 0.2
LONGEST_BACKOFF_SECONDS: Final = 10.0
EXPIRED: Final = 410
REFUSED_SECONDS: Final = 60.0
"""A server that starts may refuse what it granted before; one that does so for longer means it."""
OUTAGE_SECONDS: Final = 5.0
"""A server that is away for so long has missed what others would have told it."""
OnEvent = Callable[[WatchEvent], None]
_log = logging.getLogger(__name__)


class Follower(Protocol):
    """Told what there is and what changes."""

    def replaced(self, items: list[Json], version: int, /) -> None:
        """Everything there is, as of a resourceVersion."""

    def changed(self, body: Json, deleted: bool) -> None:
        """One object was made, changed or removed."""


class Watch:
    """Follows one kind in one namespace or everywhere. Call `run()` as a task; `synced` is set after the first list.

    Args:
        client: of the API server.
        kind: to follow.
        follower: told of every object.
        namespace: every one if empty.
        labels: selector; all objects if empty.
        starting: the server may be one that starts, which serves its paths one after the other: a kind that it does not
            serve yet is waited for.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: str,
        follower: Follower,
        *,
        namespace: str = "",
        labels: str = "",
        starting: bool = False,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self.heard_at = 0.0
        """Monotonic time of the last sign of the server: a list, an event, a bookmark or the end of a watch in time."""
        self.returned_at = -math.inf
        """Monotonic time of its first sign after it had been away for OUTAGE_SECONDS or longer."""
        self.restarts = 0
        """Watches that broke or expired."""
        self.namespace = namespace
        self._client = client
        self._follower = follower
        self._labels = labels
        self._starting = starting
        self._version = ""
        self._refused_since: float | None = None
        self._away_since: float | None = None

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            ApiError: the server refuses to list or to watch, from the beginning or for REFUSED_SECONDS.
            NotFound: it does not serve the kind.
        """
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                # It ended in time, without an error: nothing happened, and the server is there.
                self._heard()
                backoff = FIRST_BACKOFF_SECONDS
            except ApiUnavailable as error:
                self._away_since = self._away_since or time.monotonic()
                self._broke(error)
                heard = time.monotonic() - self.heard_at < LONGEST_BACKOFF_SECONDS
                backoff = FIRST_BACKOFF_SECONDS if heard else min(2 * backoff, LONGEST_BACKOFF_SECONDS)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            except ApiError as error:
                if error.status == EXPIRED:
                    self._version = ""
                elif self._is_meant():
                    raise
                self._broke(error)
                await asyncio.sleep(FIRST_BACKOFF_SECONDS)
            except NotFound as error:
                if not self._starting:
                    raise
                self._broke(error)
                await asyncio.sleep(FIRST_BACKOFF_SECONDS)

    def _is_meant(self) -> bool:
        """A refusal is not only that of a server that has not read its rules yet."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return not self.synced.is_set() or now - self._refused_since > REFUSED_SECONDS

    def _broke(self, error: ApiError | NotFound) -> None:
        self.restarts += 1
        _log.info("watch of %s ended: %s", self.kind, error)

    def _heard(self) -> None:
        self._refused_since = None
        self.heard_at = time.monotonic()
        if self._away_since is not None and self.heard_at - self._away_since >= OUTAGE_SECONDS:
            self.returned_at = self.heard_at
        self._away_since = None

    async def _list(self) -> None:
        found: list[Json] = []
        version = ""
        async for items, listed in self._client.pages(self.kind, self.namespace, self._labels):
            found += [self._reduced(item) for item in items]
            version = listed
        self._follower.replaced(found, int(version))
        self._version = version
        self._heard()
        self.synced.set()

    async def _watch(self) -> None:
        head = {"apiVersion": KINDS[self.kind].group_version, "kind": self.kind}
        async for event in self._client.watch(self.kind, self.namespace, self._labels, self._version):
            self._heard()
            if isinstance(event, str):
                self._version = event
                continue
            body = self._reduced(head | event.object)
            self._version = str(body["metadata"]["resourceVersion"])
            self._follower.changed(body, event.type == "DELETED")

    def _reduced(self, body: Json) -> Json:
        """What is kept of an object."""
        return body


class Informer(Watch):
    """Keeps a Store current, with the parts of objects that the operator reads, and tells of what is new in it."""

    def __init__(
        self, client: KubeClient, kind: str, store: Store, on_event: OnEvent, *, namespace: str = "", labels: str = ""
    ) -> None:
        super().__init__(client, kind, self, namespace=namespace, labels=labels)
        self.store = store
        self._on_event = on_event

    def replaced(self, items: list[Json], version: int, /) -> None:
        """Make the store hold these, and no others of the namespace."""
        self.store.begin_list(self.namespace)
        for body in items:
            if self.store.put(body):
                self._on_event(WatchEvent("MODIFIED", body))
        for body in self.store.keep_only([key_of(body) for body in items], version, self.namespace):
            self._on_event(WatchEvent("DELETED", body))

    def changed(self, body: Json, deleted: bool) -> None:
        """Take one change. The store first: whoever is woken reads it."""
        if deleted:
            self.store.remove(body)
            self._on_event(WatchEvent("DELETED", body))
        elif self.store.put(body):
            self._on_event(WatchEvent("MODIFIED", body))

    def _reduced(self, body: Json) -> Json:
        return trim(body)
