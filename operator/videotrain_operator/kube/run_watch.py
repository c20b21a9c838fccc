"""What kopf's watch and our own lists tell of the runs: it goes into their cache and wakes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.trim import trim


class Runs:
    """Follows the runs into a Store. Everything is called in the event loop of the process."""

    def __init__(self, store: Store, on_event: Callable[[WatchEvent], None]) -> None:
        """Begin with an empty view; kopf's handlers fill it.

        Args:
            store: cache of the runs.
            on_event: told of every change.
        """
        self.heard_at = 0.0
        """Monotonic time of the last sign of the server about runs."""
        self._store = store
        self._on_event = on_event
        self._gone: set[str] = set()

    def heard(self) -> None:
        """The server answered a request about runs."""
        self.heard_at = time.monotonic()

    def take(self, type_: str, body: Json) -> None:
        """A run as it is now, from kopf or from a list."""
        run = trim(body)
        if type_ == "DELETED":
            self._gone.add(run["metadata"]["uid"])
            self._store.remove(run)
            self._on_event(WatchEvent("DELETED", run))
        elif run["metadata"]["uid"] not in self._gone and self._store.put(run):
            self._on_event(WatchEvent("MODIFIED", run))

    def begin_list(self) -> None:
        """A list is about to be read beside the watch: what is deleted from now on stays so, whatever it holds."""
        self._gone.clear()
        self._store.begin_list()

    def keep_only(self, keys: Iterable[Key], version: int, namespace: str) -> None:
        """Forget runs that a list of that resourceVersion does not hold."""
        self.heard()
        for body in self._store.keep_only(keys, version, namespace):
            self._on_event(WatchEvent("DELETED", body))
