"""Long polls on agents, so that a run is looked at when something happened in a pod and not all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.planner.observed import Observed

BETWEEN_SECONDS: Final = 0.2
"""At least so long between two questions to one agent."""
MOST_NEWS: Final = 30
"""News of a run's agents that wake it at once; beyond them one each NEWS_SECONDS, so that nobody keeps the operator
busy by telling ever new facts."""
NEWS_SECONDS: Final = 1.0


class Listening:
    """The open questions of one run: to its leader and to pods that wait to join."""

    def __init__(self, agents: AgentClient, wake: Callable[[], None]) -> None:
        self._agents = agents
        self._wake = wake
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._news_left, self._news_at = float(MOST_NEWS), time.monotonic()

    def attend(self, observed: Observed, members: Iterable[str]) -> None:
        """Listen to the pods that matter now, and to no other.

        Args:
            observed: what the newest pass saw.
            members: pods of the running generation by rank; empty if none runs.
        """
        ranks = list(members)
        followers = set(ranks[1:])
        wanted = {
            (pod.uid, pod.address)
            for pod in observed.pods
            if ranks and pod.running and pod.address and pod.name not in followers and not pod.node_lost
        }
        for key in self._tasks.keys() - wanted:
            self._tasks.pop(key).cancel()
            self._agents.forget(key[1])
        for key in wanted - self._tasks.keys():
            self._tasks[key] = asyncio.create_task(self._listen(key[1], observed.signing_key), name=f"listen {key[1]}")

    def close(self) -> None:
        """Ask nobody any more."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _listen(self, address: str, key: bytes) -> None:
        known: str | None = None
        while True:
            tag = await self._agents.changed(address, known or "", key)
            if tag is None:
                await asyncio.sleep(max(BETWEEN_SECONDS, self._agents.silent_seconds(address)))
                continue
            if tag != known and known is not None:
                await asyncio.sleep(self._news_wait_seconds())
                self._wake()
            known = tag
            await asyncio.sleep(BETWEEN_SECONDS)

    def _news_wait_seconds(self) -> float:
        """How long one more piece of news has to wait; it is counted."""
        now = time.monotonic()
        self._news_left = min(MOST_NEWS, self._news_left + (now - self._news_at) / NEWS_SECONDS) - 1
        self._news_at = now
        return max(0.0, -self._news_left * NEWS_SECONDS)
