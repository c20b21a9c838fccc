"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Spans:
    """Adds up the time spent in named parts of a step, in microseconds.

    Args:
        device: of the work; on a GPU a span ends when the work queued within it has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._totals: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def measure(self, name: str, *, on_device: bool = False) -> Iterator[None]:
        """Count the time of the block.

        Args:
            name: of the part.
            on_device: wait for the device at the end of the block.
        """
        began = time.monotonic_ns()
        try:
            yield
        finally:
            if on_device and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.add(name, (time.monotonic_ns() - began) // 1000)

    def add(self, name: str, microseconds: int) -> None:
        """Count time that was measured elsewhere."""
        self._totals[name] += microseconds

    def take(self, name: str) -> int:
        """The time so far, which begins anew."""
        return self._totals.pop(name, 0)
