"""List and watch: keeps a Store current through lost connections, expired versions and silence."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.cache import Key, Store, key_of
from videotrain_operator.kube.client import ApiError, ApiUnavailable, KubeClient
from videotrain_operator.kube.kinds import KINDS
from videotrain_operator.kube.trim import trim

FIRST_BACKOFF_SECONDS: Final = 0.2
LONGEST_BACKOFF_SECONDS: Final = 10.0
EXPIRED: Final = 410
REFUSED_SECONDS: Final = 60.0
"""A server that starts may refuse what it granted before; one that does so for longer means it."""
OnEvent = Callable[[WatchEvent], None]
_log = logging.getLogger(__name__)


class Informer:
    """Follows one kind in one namespace or everywhere. Call `run()` as a task; `synced` is set after the first list."""

    def __init__(
        self, client: KubeClient, kind: str, store: Store, on_event: OnEvent, *, namespace: str = "", labels: str = ""
    ) -> None:
        self.kind = kind
        self.store = store
        self.synced = asyncio.Event()
        self.heard_at = 0.0
        """Monotonic time of the last sign of the server: a list, an event, a bookmark or the end of a watch in time."""
        self.restarts = 0
        """Watches that broke or expired."""
        self.namespace = namespace
        self._client = client
        self._on_event = on_event
        self._labels = labels
        self._version = ""
        self._refused_since: float | None = None

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            ApiError: the server refuses to list or to watch, from the beginning or for REFUSED_SECONDS.
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

    def _is_meant(self) -> bool:
        """A refusal is not only that of a server that has not read its rules yet."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        return not self.synced.is_set() or now - self._refused_since > REFUSED_SECONDS

    def _broke(self, error: ApiError) -> None:
        self.restarts += 1
        _log.info("watch of %s ended: %s", self.kind, error)

    def _heard(self) -> None:
        self._refused_since = None
        self.heard_at = time.monotonic()

    async def _list(self) -> None:
        keys: list[Key] = []
        version = ""
        async for items, listed in self._client.pages(self.kind, self.namespace, self._labels):
            for item in items:
                body = trim(item)
                keys.append(key_of(body))
                if self.store.put(body):
                    self._on_event(WatchEvent("MODIFIED", body))
            version = listed
        for body in self.store.keep_only(keys, int(version), self.namespace):
            self._on_event(WatchEvent("DELETED", body))
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
            body = trim(head | event.object)
            self._version = str(body["metadata"]["resourceVersion"])
            # The store first: whoever is woken reads it.
            if event.type == "DELETED":
                self.store.remove(body)
                self._on_event(WatchEvent("DELETED", body))
            elif self.store.put(body):
                self._on_event(WatchEvent("MODIFIED", body))
