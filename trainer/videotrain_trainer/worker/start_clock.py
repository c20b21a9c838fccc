"""What a start goes into, from the roster to the first step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class StartClock:
    """Microseconds of each phase of a start; the phases follow each other without a gap.

    Args:
        began: when the start began, by this machine's clock; by default now.
    """

    def __init__(self, began: datetime | None = None) -> None:
        self._last = began or datetime.now(UTC)
        self.phases_us: dict[str, int] = {}
        """By phase, in their order."""

    def passed(self, phase: str, at: datetime | None = None) -> None:
        """A phase ends, and the next one begins.

        Args:
            phase: its name.
            at: when it ended; by default now. A time before the phase began, from another clock, makes it empty.
        """
        end = max(at or datetime.now(UTC), self._last)
        self.phases_us[phase] = self.phases_us.get(phase, 0) + (end - self._last) // timedelta(microseconds=1)
        self._last = end

    def __str__(self) -> str:
        return ", ".join(f"{phase} {microseconds / 1e6:.2f} s" for phase, microseconds in self.phases_us.items())
