"""Black borders: bars above and below (letterbox) or at the sides (pillarbox) that a shot has from end to end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Border = tuple[int, int, int, int]
"""Black lines and columns: above, below, left, right."""
BLACK = 40
"""Grey level, 0-255, that no pixel of a black line passes; codecs and dither lift black to about 30."""
LEAST = 0.02
"""Share of the picture's side below which an edge is left alone."""
UNKNOWN = 65_535
"""Of a frame that is black all over: it says nothing about borders."""


@dataclass(frozen=True)
class Crop:
    """The part of the shown picture that is left, pixels; all even."""

    top: int
    left: int
    height: int
    width: int


def border_of(grey: NDArray[np.uint8]) -> Border:
    """Black lines at the edges of one frame (H, W); UNKNOWN if there is nothing else."""
    rows, columns = np.flatnonzero(grey.max(axis=1) > BLACK), np.flatnonzero(grey.max(axis=0) > BLACK)
    if not len(rows):
        return UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN
    height, width = grey.shape
    return int(rows[0]), height - 1 - int(rows[-1]), int(columns[0]), width - 1 - int(columns[-1])


def crop_of(borders: NDArray[np.uint16], scanned: tuple[int, int], size: tuple[int, int]) -> Crop | None:
    """What is left of a shot's picture without its borders; None if it has none.

    Args:
        borders: (frames, 4) of `border_of`.
        scanned: (height, width) at which they were measured.
        size: (height, width) of the shown picture.
    """
    fewest = borders.min(axis=0)
    if fewest[0] == UNKNOWN:
        return None
    lines = np.array([scanned[0], scanned[0], scanned[1], scanned[1]])
    sides = np.array([size[0], size[0], size[1], size[1]])
    # One line more than was found: where a bar ends between two lines, it has darkened a part of the next one.
    cut = np.where(fewest >= LEAST * lines, np.ceil((fewest + 1) * sides / lines / 2) * 2, 0).astype(int)
    if not cut.any():
        return None
    height, width = (size[0] - cut[0] - cut[1]) // 2 * 2, (size[1] - cut[2] - cut[3]) // 2 * 2
    return Crop(int(cut[0]), int(cut[2]), max(2, int(height)), max(2, int(width)))
