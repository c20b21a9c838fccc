"""Perceptual hashes, by which `dedup` finds clips that look alike."""

from __future__ import annotations

import cv2
import imagehash
from PIL import Image

from videotrain_trainer.curation.scores.interface import ClipFrame, Columns

FRAMES = 3
THUMB = 32


class Looks:
    """The hashes of three spread frames, 16 hex digits each; a clip of fewer frames repeats them."""

    def __init__(self) -> None:
        self._hashes: list[str] = []

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        if frame.among(FRAMES):
            thumb = cv2.resize(frame.grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
            self._hashes.append(str(imagehash.phash(Image.fromarray(thumb))))

    def columns(self) -> Columns:
        """What was measured."""
        return {"phash": "".join((self._hashes * FRAMES)[:FRAMES])}
