"""Node trust: when many nodes are lost at the same time, the view is more likely wrong than the cluster gone.

Kubernetes' own node controller stops evictions for the same reason (partial and full disruption of a zone).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from videotrain_api.schema import Json
from videotrain_operator.cluster.podview import node_is_lost

FEWEST_NODES: Final = 4
"""Fewer lost nodes than that are ordinary, whatever their share."""
LONGEST_SECONDS: Final = 600.0
"""After so long a loss that goes on is believed."""
SETTLE_SECONDS: Final = 1.5
"""How long a first lost node is waited upon to see whether others follow."""
STALE_SECONDS: Final = 200.0
"""A view of nodes that was not confirmed for so long is not acted upon."""
RETURN_SECONDS: Final = 30.0
"""After an outage of the API server nodes have so long to report: kubelets do it every 10 s."""
_log = logging.getLogger(__name__)


class NodeTrust:
    """Decides whether nodes that look lost are believed to be, and holds every pass for the moment that this takes."""

    def __init__(self, percent: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin with nodes that are trusted.

        Args:
            percent: largest share of the nodes in use that may be lost at the same time.
            monotonic: this process's clock.
        """
        self._percent = percent
        self._monotonic = monotonic
        self._since: float | None = None
        self._lost: set[str] = set()
        self._settled = asyncio.Event()
        self._settled.set()
        self.reason = ""
        """Why nodes are not trusted; empty while they are."""

    def notice(self, name: str, node: Json | None) -> bool:
        """A node changed; whether it is news that it is lost or back.

        Nodes that fall silent together are marked one after another. So the first of them holds all passes until it is
        clear how many they are. A node whose object is gone holds nothing: somebody deleted it.
        """
        lost = node is None or node_is_lost(node)
        if lost == (name in self._lost):
            return False
        if lost:
            self._lost.add(name)
        else:
            self._lost.discard(name)
        if lost and node is not None and self._settled.is_set():
            self._settled.clear()
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settled.set)
        return True

    async def settled(self) -> None:
        """Return when no node was lost just now."""
        await self._settled.wait()

    def assess(self, nodes_in_use: Iterable[Json | None], heard_at: float, returned_at: float = -math.inf) -> str:
        """Decide anew from the nodes that hold pods of runs.

        Args:
            nodes_in_use: Node objects, None for one that is gone.
            heard_at: monotonic time of the last sign of the API server about nodes.
            returned_at: monotonic time at which the server came back after its last outage. The node controller may
                declare nodes lost then that only could not report to it.

        Returns:
            Why nodes are not trusted; empty if they are.
        """
        now = self._monotonic()
        nodes = list(nodes_in_use)
        lost = sum(1 for node in nodes if node is None or node_is_lost(node))
        reason = ""
        if lost >= FEWEST_NODES and lost * 100 > self._percent * len(nodes):
            self._since = now if self._since is None else self._since
            if now - self._since <= LONGEST_SECONDS:
                reason = "more nodes than can be believed are lost at the same time"
        else:
            self._since = None
        if now - returned_at < RETURN_SECONDS and any(node is not None and node_is_lost(node) for node in nodes):
            reason = reason or "the API server was away until just now, and no node could report to it"
        if now - heard_at > STALE_SECONDS:
            reason = f"the API server has told nothing about nodes for more than {STALE_SECONDS:.0f} s"
        if reason != self.reason:
            _log.warning("%s: %d of %d nodes in use are lost", reason or "nodes are trusted again", lost, len(nodes))
        self.reason = reason
        return reason
