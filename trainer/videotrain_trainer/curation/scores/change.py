"""How far the picture comes: what moves, however slowly, apart from noise over a picture that stands still."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.curation.scores.interface import LINES, ClipFrame, Columns

FRAMES = 8
SIDE = 16
"""Pixels of a block's side; the mean of a block has a sixteenth of the noise of its pixels."""
MOST = 99
"""Percentile of the blocks, so that something small that moves before a still wall counts."""


class Change:
    """Grey levels by which blocks of the picture differ between neighbours of eight spread frames, at most.

    Noise makes neighbouring frames differ as much as slow motion does, which `motion` cannot tell apart; but it makes
    frames an eighth of the clip apart differ no more than that, while whatever moves has left its blocks by then.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._most = 0.0

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        if not frame.among(FRAMES):
            return
        size = (max(1, frame.grey.shape[1] // SIDE), LINES // SIDE)
        blocks = np.asarray(cv2.resize(frame.grey.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)
        if self._before is not None:
            self._most = max(self._most, float(np.percentile(np.abs(blocks - self._before), MOST)))
        self._before = blocks

    def columns(self) -> Columns:
        """What was measured."""
        return {"change": self._most}
