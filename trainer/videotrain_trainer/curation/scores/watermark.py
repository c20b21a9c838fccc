"""Watermarks: small marks that stand still while the picture behind them moves."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.curation.scores.interface import ClipFrame, Columns

FRAMES = 16
STRONG = 6.0
"""Grey levels per pixel that make an edge."""
STEADY = 0.5
"""Of its mean strength an edge keeps so much in every frame."""
REACH = 9
"""Pixels over which edges belong to one mark."""
SMALLEST, LARGEST = 1e-3, 0.1
"""Shares of the picture: less is chance, more is no mark but the scene."""
CHANGES = 4.0
"""Grey levels (standard deviation) from which on a pixel changes."""
MOVING = 0.3
"""Share of the picture that must change; less, and it is the scene that stands still."""
MARKS = 4
"""At most."""
THEIRS = 0.6
"""Share of all steady edges that marks must have; elsewhere too, and it is the camera that stands still."""


class Watermark:
    """Share of the picture that such marks cover, by the edges of spread frames.

    It is 0 where the scene itself stands still: nothing tells a mark from it. A mark has edges in both directions; the
    horizon of a pan has them in one, and is none.
    """

    def __init__(self) -> None:
        self._frames: list[NDArray[np.uint8]] = []

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        if frame.among(FRAMES):
            self._frames.append(frame.grey)

    def columns(self) -> Columns:
        """What was measured."""
        if len(self._frames) < FRAMES // 2 or (np.std(self._frames, axis=0) > CHANGES).mean() < MOVING:
            return {"watermark": 0.0}
        near, steady = np.ones((REACH, REACH), np.uint8), [self._steady(axis) for axis in ((1, 0), (0, 1))]
        both = [cv2.dilate(edges.astype(np.uint8), near) for edges in steady]
        _, marks, found, _ = cv2.connectedComponentsWithStats(both[0] & both[1])
        areas = found[:, cv2.CC_STAT_AREA] / marks.size
        largest = [mark for mark in np.argsort(-areas) if mark != 0 and areas[mark] >= SMALLEST][:MARKS]
        edges, total = steady[0] | steady[1], float(areas[largest].sum())
        theirs = float((edges & np.isin(marks, largest)).sum())
        if total > LARGEST or theirs < THEIRS * edges.sum():
            return {"watermark": 0.0}
        return {"watermark": total}

    def _steady(self, axis: tuple[int, int]) -> NDArray[np.bool_]:
        gradients = np.stack([cv2.Sobel(grey, cv2.CV_32F, *axis, scale=1 / 8) for grey in self._frames])
        mean = gradients.mean(axis=0)
        kept = (np.sign(mean) * gradients >= STEADY * np.abs(mean)).all(axis=0)
        return np.asarray(kept & (np.abs(mean) > STRONG))
