"""Where the time of a step goes, told by the device without making the host wait for it."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import torch

Phase = Literal["data", "forward", "backward", "communication", "optimizer"]
"""What a rank does in a step. `data` is waiting for the batch. `communication` is what lies between the backward pass
and the update, and between the update and the end of the step: what hides behind computation is not in it."""


class Clock(Protocol):
    """Marks in the order of the device's work."""

    def mark(self) -> Any:
        """A mark behind all work that was queued so far."""

    def microseconds(self, first: Any, second: Any) -> int:
        """Between two marks that the device has passed."""

    def wait(self, mark: Any) -> datetime:
        """Wait until the device has passed a mark; when it did so. Marks are waited for in their order."""


class HostClock:
    """The clock of a CPU, which has done its work when the call returns."""

    def mark(self) -> tuple[int, datetime]:
        """Now."""
        return time.monotonic_ns(), datetime.now(UTC)

    def microseconds(self, first: tuple[int, datetime], second: tuple[int, datetime]) -> int:
        """By the monotonic clock."""
        return (second[0] - first[0]) // 1000

    def wait(self, mark: tuple[int, datetime]) -> datetime:
        """When the mark was made."""
        return mark[1]


class DeviceClock:
    """Events on the current stream of a GPU.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: tuple[torch.cuda.Event, datetime] | None = None

    def mark(self) -> torch.cuda.Event:
        """An event; a host that waits for it sleeps instead of turning in circles."""
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def microseconds(self, first: torch.cuda.Event, second: torch.cuda.Event) -> int:
        """By the device's clock."""
        milliseconds: float = first.elapsed_time(second)
        return round(1000 * milliseconds)

    def wait(self, mark: torch.cuda.Event) -> datetime:
        """A host that comes late counts on from the last mark, by the device's clock."""
        late: bool = mark.query()  # type: ignore[no-untyped-call]
        mark.synchronize()
        at = datetime.now(UTC)
        if late and self._known is not None:
            known, known_at = self._known
            at = min(at, known_at + timedelta(microseconds=self.microseconds(known, mark)))
        self._known = mark, at
        return at


@dataclass(frozen=True)
class Marks:
    """The phases of one step of this rank."""

    clock: Clock
    start: Any
    ends: tuple[tuple[Phase | None, Any], ...]
    """Ends of phases, in order; None for what belongs to no phase."""

    def wait(self) -> datetime:
        """Wait until the device has done the step; when it did so."""
        return self.clock.wait(self.ends[-1][1])

    def totals(self) -> dict[Phase, int]:
        """Microseconds of each phase; the device has done the step."""
        found: dict[Phase, int] = dict.fromkeys(("data", "forward", "backward", "communication", "optimizer"), 0)
        last = self.start
        for phase, end in self.ends:
            if phase is not None:
                found[phase] += self.clock.microseconds(last, end)
            last = end
        return found


class Timeline:
    """Collects the phases of the step that is being queued.

    Args:
        device: of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock: Clock = HostClock() if device.type == "cpu" else DeviceClock(device)
        self._ends: list[tuple[Phase | None, Any]] = []
        self._start: Any = None

    def begin(self) -> None:
        """A step begins."""
        self._start, self._ends = self._clock.mark(), []

    def mark(self, phase: Phase | None) -> None:
        """What was queued since the last mark belongs to this phase."""
        self._ends.append((phase, self._clock.mark()))

    def end(self) -> Marks:
        """The step is queued, whole."""
        self.mark(None)
        return Marks(self._clock, self._start, tuple(self._ends))


def take_memory_peak(device: torch.device) -> int:
    """Most bytes that were held since the last call: of the GPU, or by this process since its start on the CPU.

    The allocator counts when work is queued, so nobody waits for the device.
    """
    if device.type != "cuda":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


class Spans:
    """Adds up the time for which the host stood still in named parts, in microseconds."""

    def __init__(self) -> None:
        self._totals: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time of the block."""
        began = time.monotonic_ns()
        try:
            yield
        finally:
            self._totals[name] += (time.monotonic_ns() - began) // 1000

    def take(self, name: str) -> int:
        """The time so far, which begins anew."""
        return self._totals.pop(name, 0)
