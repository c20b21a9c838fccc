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
AROUND = 17
"""Side of the square, in pixels, in which a mark has edges of several directions."""
TURNED = 0.2
"""Share of the strength along the main direction of those edges that is left across it; a straight line has none."""
SMALLEST, LARGEST = 1e-3, 0.1
"""Shares of the picture: less is chance, more is no mark but the scene."""
CHANGES = 4.0
"""Grey levels (standard deviation) from which on a pixel changes."""
MOVING = 0.2
"""Share of the picture that must change; less, and it is the scene that stands still."""
MARKS = 4
"""At most."""
THEIRS = 0.4
"""Share of all steady edges that marks must have. Filmed streets and faces before a fixed camera have at most 0.13 in
what might be marks, since all that stands still has such edges."""


class Watermark:
    """Share of the picture that such marks cover, by the edges of spread frames.

    It is 0 where the scene itself stands still: nothing tells a mark from it. A mark has edges of several directions; a
    horizon or a railing that a camera pans along has them in one, and is none.
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
        edges, turned = self._steady_edges()
        near = cv2.dilate(edges.astype(np.uint8), np.ones((REACH, REACH), np.uint8))
        _, marks, found, _ = cv2.connectedComponentsWithStats(near * turned.astype(np.uint8))
        areas = found[:, cv2.CC_STAT_AREA] / marks.size
        largest = [mark for mark in np.argsort(-areas) if mark != 0 and areas[mark] >= SMALLEST][:MARKS]
        total = float(areas[largest].sum())
        theirs = float((edges & np.isin(marks, largest)).sum())
        if total > LARGEST or theirs < THEIRS * edges.sum():
            return {"watermark": 0.0}
        return {"watermark": total}

    def _steady_edges(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Pixels (LINES, W) on edges that no frame lacks, and those around which such edges have several directions.

        The directions are told by the structure tensor of the mean gradients, whose eigenvalues are the strengths along
        and across the main one.
        """
        across, down = (
            np.stack([cv2.Sobel(grey, cv2.CV_32F, *axis, scale=1 / 8) for grey in self._frames])
            for axis in ((1, 0), (0, 1))
        )
        x, y = across.mean(axis=0), down.mean(axis=0)
        strength = x**2 + y**2
        kept = (across * x + down * y >= STEADY * strength).all(axis=0)
        edges = np.asarray(kept & (strength > STRONG**2))
        xx, yy, xy = (
            cv2.boxFilter(edges * part, cv2.CV_32F, (AROUND, AROUND), normalize=False) for part in (x * x, y * y, x * y)
        )
        spread = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
        return edges, np.asarray(xx + yy - spread > TURNED * (xx + yy + spread))
