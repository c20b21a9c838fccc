"""Dissolves: one shot fades into the next, which a detector of sudden changes does not see.

Where two pictures are mixed with shares 1 - a and a, the variance of the mixture is (1 - a)^2 that of the first, a^2
that of the second, and 2 a (1 - a) their covariance. It falls, to half of their mean where they are unrelated, and
rises again along a parabola, whatever moves.
"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

LENGTHS = (6, 8, 10, 12, 16, 20, 24, 30, 36, 45, 60)
"""Frames over which a dissolve is looked for."""
LEAST_VARIANCE = 100.0
"""Of both shots; flatter pictures tell nothing."""
DEEPEST, SHALLOWEST = 1.4, 0.7
"""How far the variance may and must fall below the line between both shots, by how far it falls in theory."""
MISFIT = 0.1
"""Largest squared deviation from the parabola, by that from a straight line."""
ALIKE = 0.5
"""Correlation of the pictures before and after from which on they are one shot."""
THUMB = (32, 18)


class Dissolves:
    """Finds dissolves in frames that come one by one. Of those that overlap, the one that fits best counts."""

    def __init__(self) -> None:
        self._variances: deque[float] = deque(maxlen=LENGTHS[-1] + 1)
        self._thumbs: deque[NDArray[np.float32]] = deque(maxlen=LENGTHS[-1] + 1)
        self._frames = 0
        self._found: list[tuple[float, int, int]] = []

    def see(self, grey: NDArray[np.uint8]) -> None:
        """The next frame (H, W)."""
        thumb = np.asarray(cv2.resize(grey, THUMB, interpolation=cv2.INTER_AREA), np.float32)
        self._variances.append(float(cv2.GaussianBlur(grey, (5, 5), 0).astype(np.float32).var()))
        self._thumbs.append(thumb - thumb.mean())
        last, self._frames = self._frames, self._frames + 1
        variances = np.array(self._variances)
        for length in LENGTHS:
            if length >= len(variances):
                break
            alike = _correlation(self._thumbs[-length - 1], self._thumbs[-1])
            misfit = _misfit(variances[-length - 1 :], max(0.0, alike))
            if misfit < MISFIT and alike < ALIKE:
                self._add(misfit, last - length + 1, last)

    def spans(self) -> list[tuple[int, int]]:
        """First frame that has something of the second shot, and first that has nothing of the first one."""
        return [(first, end) for _, first, end in self._found]

    def _add(self, misfit: float, first: int, end: int) -> None:
        if not self._found or first >= self._found[-1][2]:
            self._found.append((misfit, first, end))
        elif misfit < self._found[-1][0]:
            self._found[-1] = misfit, first, end


def _misfit(variances: NDArray[np.float64], alike: float) -> float:
    """How badly the variances of neighbouring frames follow a dissolve from the first to the last; infinite if not.

    Args:
        variances: of the frames.
        alike: correlation of the first and the last one, not negative.
    """
    before, after, middle = variances[0], variances[-1], len(variances) // 2
    if min(before, after) < LEAST_VARIANCE:
        return float("inf")
    share = np.linspace(0, 1, len(variances))
    line = before + (after - before) * share
    parabola = (1 - share) ** 2 * before + share**2 * after + 2 * share * (1 - share) * alike * np.sqrt(before * after)
    depth, expected = (line - variances)[middle], (line - parabola)[middle]
    if not SHALLOWEST * expected < depth < DEEPEST * expected:
        return float("inf")
    return float(((variances - parabola) ** 2).sum() / ((variances - line) ** 2).sum())


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float((one * other).sum() / max(1e-9, np.linalg.norm(one) * np.linalg.norm(other)))
