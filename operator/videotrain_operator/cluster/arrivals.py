"""The pods of a run that has never had a world come one after another: which of their changes can wait."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from videotrain_api.schema import Json

ARRIVAL_SECONDS: Final = 1.0
"""How long the news that a pod was placed or runs may wait for those of the others."""


class Arrivals:
    """Counts the pods that run. Until all that are wanted do, each alone changes only words, which may wait."""

    def __init__(self) -> None:
        """Nothing may wait before the first pass."""
        self._missing = 0
        self._running: set[str] = set()

    def expect(self, wanted: int, running: Iterable[str]) -> None:
        """A pass is over.

        Args:
            wanted: how many pods the largest world is made of; 0 if the run has, or had, a world.
            running: uids of the pods that run.
        """
        self._running = set(running)
        self._missing = wanted - len(self._running)

    def can_wait(self, pod: Json) -> bool:
        """Whether the change of a pod may wait for ARRIVAL_SECONDS: all is well with it, and others are missing."""
        status = pod.get("status") or {}
        states = [item.get("state") or {} for item in status.get("containerStatuses") or []]
        trouble = (
            self._missing <= 0
            or "deletionTimestamp" in pod["metadata"]
            or status.get("phase") not in ("Pending", "Running")
            or any("terminated" in state for state in states)
        )
        if trouble:
            return False
        if any("running" in state for state in states) and pod["metadata"]["uid"] not in self._running:
            self._running.add(pod["metadata"]["uid"])
            self._missing -= 1
        return self._missing > 0
