"""How many requests are in flight: as many as the server works on, and few that only wait there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from videotrain_operator.kube.turns import Turns

FEWEST: Final = 3
MOST: Final = 16
"""Requests in flight beside watches."""
_WAIT_AT_LEAST: Final = 2.0
_WAIT_AT_MOST: Final = 3.0
"""So many of our requests in flight may wait at the server: with fewer it could do more, with more it does not."""
_FORGET_SECONDS: Final = 300.0
"""After so long the quickest answer of before counts as twice as slow, since objects and servers change."""


class Pace:
    """Sets a Turns to what the answers' times tell, as TCP Vegas sets its window.

    An answer that takes twice as long as the quickest of its kind has waited half of its time. A server whose cores are
    all taken answers no sooner when more is asked of it at once; it only neglects its watchers, and ends their watches.
    One that waits for its disks does more at the same time, and is asked to.
    """

    def __init__(self, turns: Turns, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take over a Turns; it begins with the fewest.

        Args:
            turns: taken for each request.
            monotonic: the clock by which quickest answers grow old, seconds.
        """
        self._turns, self._monotonic = turns, monotonic
        self._quickest: dict[tuple[str, str], tuple[float, float]] = {}
        self._answers, self._waiting_share, self._pressed = 0, 0.0, False
        turns.most = FEWEST

    def answered(self, verb: str, kind: str, seconds: float) -> None:
        """Take note of one answer.

        Args:
            verb: of the request.
            kind: of the object; with the verb it tells what an answer may take.
            seconds: from sending the request to reading the answer.
        """
        now = self._monotonic()
        quickest, since = self._quickest.get((verb, kind), (seconds, now))
        quickest = min(seconds, quickest * 2 ** ((now - since) / _FORGET_SECONDS))
        self._quickest[verb, kind] = (quickest, now)
        self._answers += 1
        self._waiting_share += 1 - quickest / seconds if seconds > 0 else 0.0
        self._pressed = self._pressed or self._turns.crowded
        if self._answers < self._turns.most:
            return
        waiting = self._turns.most * self._waiting_share / self._answers
        if waiting > _WAIT_AT_MOST:
            self._turns.most = max(FEWEST, self._turns.most - 1)
        elif waiting < _WAIT_AT_LEAST and self._pressed:  # else nobody knows what more would do
            self._turns.most = min(MOST, self._turns.most + 1)
        self._answers, self._waiting_share, self._pressed = 0, 0.0, False
