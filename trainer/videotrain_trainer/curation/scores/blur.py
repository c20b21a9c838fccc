"""Sharpness: the variance of the Laplacian."""

from __future__ import annotations

import cv2
import numpy as np

from videotrain_trainer.curation.scores.interface import ClipFrame, Columns

FRAMES = 5


class Blur:
    """What three of five spread frames reach at least."""

    def __init__(self) -> None:
        self._sharpness: list[float] = []

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        if frame.among(FRAMES):
            self._sharpness.append(float(cv2.Laplacian(frame.grey, cv2.CV_32F).var()))

    def columns(self) -> Columns:
        """What was measured."""
        return {"blur": float(np.median(self._sharpness))}
