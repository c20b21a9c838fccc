"""Shake of the camera: how unsteadily the whole picture moves."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.curation.scores.interface import ClipFrame, Columns

HEIGHT = 128
"""Lines at which the shift of the picture is found, to about a twentieth of a pixel."""


class Jitter:
    """Median change of the picture's shift from one pair of frames to the next, in percent of its height.

    The shift comes from phase correlation. A steady pan, however fast, changes it by nothing; a hand that trembles does
    so in every frame. `motion` cannot tell the two apart.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._window: NDArray[np.float32] | None = None
        self._shifts: list[tuple[float, float]] = []

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        height, width = frame.grey.shape
        size = (max(8, width * HEIGHT // height), HEIGHT)
        picture = np.asarray(cv2.resize(frame.grey, size, interpolation=cv2.INTER_AREA), np.float32)
        if self._before is None:
            self._window = np.asarray(cv2.createHanningWindow(size, cv2.CV_32F), np.float32)
        else:
            shift, _ = cv2.phaseCorrelate(self._before, picture, self._window)
            self._shifts.append((shift[0], shift[1]))
        self._before = picture

    def columns(self) -> Columns:
        """What was measured."""
        if len(self._shifts) < 2:
            return {"jitter": 0.0}
        changes = np.linalg.norm(np.diff(np.array(self._shifts), axis=0), axis=1)
        return {"jitter": float(np.median(changes)) * 100 / HEIGHT}
