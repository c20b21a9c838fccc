"""Time as the API server tells it, held against this process's monotonic clock.

Every answer carries a Date of one second's resolution. Its true time lies between that second's begin, if the answer
was made when it arrived, and its end, if it was made when the request was sent; what several answers leave open
together is much less than a second (Cristian 1989, doi:10.1007/BF01784024). This machine's wall clock is never asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

TOLERANCE_SECONDS: Final = 2.0
"""Servers behind one address may differ by so much; more is a jump."""
CONFIRM_SECONDS: Final = 10.0
"""The first time that is told, and the known one after a jump and back, is believed once answers agree for so long."""
BELIEVE_SECONDS: Final = 600.0
"""A jump is believed once every answer of so long agrees with it. Servers whose clocks differ never agree: after twice
as long the time that was known goes on."""
DRIFT: Final = 200e-6
"""How fast a monotonic clock may run away from the server's."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_log = logging.getLogger(__name__)


class _Offset(NamedTuple):
    """Server's seconds since 1970 less monotonic seconds: the least and the most they can be."""

    least: float
    most: float
    at: float
    """Monotonic time of the newest answer in it."""

    def meets(self, other: _Offset) -> bool:
        slack = TOLERANCE_SECONDS + DRIFT * abs(other.at - self.at)
        return other.least <= self.most + slack and self.least <= other.most + slack

    def narrowed(self, other: _Offset) -> _Offset:
        """What both allow; the newer one where they exclude each other by no more than the tolerance."""
        drift = DRIFT * (other.at - self.at)
        least, most = max(self.least - drift, other.least), min(self.most + drift, other.most)
        return _Offset(least, most, other.at) if least <= most else other


class Clock:
    """Tells the time from what servers tell, and whether it is trusted.

    A jump, forwards or backwards, moves nothing at first: the time that was known goes on with the monotonic clock, and
    is not trusted until answers agree with it again, or with the new one for long. The first time ever told has to be
    confirmed too, so one wrong reading decides nothing.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, *, confirm_seconds: float = CONFIRM_SECONDS
    ) -> None:
        """Begin without a time.

        Args:
            monotonic: this process's clock; stands still while the machine sleeps.
            confirm_seconds: how long answers must agree before the first time told is believed.
        """
        self.monotonic = monotonic
        self._confirm_seconds = confirm_seconds
        self._known: _Offset | None = None
        self._other: _Offset | None = None
        """What the newest answers say, while that is not what is known."""
        self._latest: datetime | None = None
        """The latest time that `now` told; it does not go back before it, unless a jump back is believed."""
        self._untrusted_since = 0.0
        self._agreed_since = 0.0
        """Since when every answer agrees with the one before it; monotonic, like the one above."""
        self._untrusted = True
        self._confirmed = False
        """A time was believed once."""

    def note(self, told: datetime, sent: float, received: float, *, resolution: float = 1.0) -> None:
        """A server told the time.

        Args:
            told: as in the answer, aware.
            sent: monotonic seconds when it was asked.
            received: monotonic seconds when the head of its answer came.
            resolution: seconds by which the true time may be later than `told`.
        """
        seconds = (told - _EPOCH).total_seconds()
        answer = _Offset(seconds - received, seconds + resolution - sent, received)
        if self._known is None:
            self._known, self._untrusted_since, self._agreed_since = answer, received, received
        elif self._known.meets(answer):
            self._known = self._known.narrowed(answer)
            if self._other is not None:
                self._other, self._agreed_since = None, received
            if received - self._agreed_since >= self._confirm_seconds:
                self._untrusted, self._confirmed = False, True
        elif self._other is None or not self._other.meets(answer):
            jump = answer.least - self._known.least
            _log.warning("the API server's clock jumped by %.1f s: time is not trusted", jump)
            self._untrusted_since = self._untrusted_since if self._untrusted else received
            self._other, self._agreed_since, self._untrusted = answer, received, True
        else:
            self._other = self._other.narrowed(answer)
            # What was told once and never confirmed is no better than what is told since.
            if received - self._agreed_since >= (BELIEVE_SECONDS if self._confirmed else self._confirm_seconds):
                _log.warning("the API server's new time is believed")
                self._known, self._other, self._latest, self._untrusted = self._other, None, None, False
                self._confirmed = True
        if self._untrusted and received - self._untrusted_since >= 2 * BELIEVE_SECONDS:
            _log.warning("API servers tell different times; the one that was known goes on")
            self._untrusted = False

    def now(self) -> datetime:
        """The time, trusted or not; the earliest that it can be, so that nothing falls due or is billed too early.

        Raises:
            RuntimeError: no server has told the time yet.
        """
        if self._known is None:
            raise RuntimeError("no answer of the API server has told the time yet")
        now = _EPOCH + timedelta(seconds=round(self._known.least + self.monotonic(), 6))
        self._latest = now if self._latest is None else max(self._latest, now)
        return self._latest

    @property
    def untrusted(self) -> str:
        """Why the time is not trusted; empty if it is. Meanwhile nothing may be decided that cannot be taken back."""
        if not self._untrusted:
            return ""
        if self._other is None:
            return f"the API server's time was not confirmed for {self._confirm_seconds:g} s yet"
        return "the API server's clock jumped"
