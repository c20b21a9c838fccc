"""Sending a run's roster to its agents, which mount it too but may see it a minute late."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from videotrain_api.records import Roster, RosterNotice
from videotrain_api.relay import branches
from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.planner.observed import Observed

TREE_SECONDS: Final = 5.0
"""How long those at the top of the tree may wait for the rest."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
"""Between tries to reach agents that took no roster; twice as long each time."""
_log = logging.getLogger(__name__)


class Announcement:
    """Sees to it that every agent of one run has its newest roster."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents
        self._told: dict[str, tuple[int, int, int]] = {}
        self._waiting: dict[str, str] = {}
        self._order = (0, 0, 0)
        self._task: asyncio.Task[None] | None = None

    def spread(self, roster: Roster | None, observed: Observed) -> None:
        """Send the roster to all pods that run and do not have it, members or not.

        Args:
            roster: as the newest pass left it; None before the first.
            observed: what that pass saw.
        """
        if roster is None or roster.order() < self._order:
            return
        there = {p.uid: p.address for p in observed.pods if p.running and p.address and not p.node_lost}
        self._told = {uid: order for uid, order in self._told.items() if uid in there}
        # By address, since that is what receipts name. A task that goes on takes up whoever is new here.
        self._waiting.clear()
        for uid, address in there.items():
            if self._told.get(uid, (0, 0, 0)) < roster.order():
                self._waiting[address] = uid
        if roster.order() > self._order:
            self.close()
            self._order = roster.order()
        if self._waiting and (self._task is None or self._task.done()):
            sending = self._send_until_all_have_it(roster, observed.signing_key)
            self._task = asyncio.create_task(sending, name=f"roster {roster.run_uid} {roster.generation}")

    def close(self) -> None:
        """Send nothing any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _send_until_all_have_it(self, roster: Roster, key: bytes) -> None:
        pause, turn = FIRST_PAUSE_SECONDS, 0
        while self._waiting:
            # Other agents are at the top each time, so that one that is silent keeps it from its branch only once.
            addresses = sorted(self._waiting)
            addresses = addresses[turn % len(addresses) :] + addresses[: turn % len(addresses)]
            await asyncio.gather(*(self._send(head, rest, roster, key) for head, rest in branches(addresses)))
            if self._waiting:
                _log.info("run_uid=%s %d agents have no roster yet", roster.run_uid, len(self._waiting))
                await asyncio.sleep(pause)
                pause, turn = min(2 * pause, LONGEST_PAUSE_SECONDS), turn + 1

    async def _send(self, head: str, rest: list[str], roster: Roster, key: bytes) -> None:
        notice = RosterNotice(roster=roster, to=rest, seconds=TREE_SECONDS)
        for address in await self._agents.tell(head, notice, key):
            uid = self._waiting.pop(address, None)
            if uid is not None:
                self._told[uid] = roster.order()
