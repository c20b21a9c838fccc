"""First, middle and last frame of a clip, kept beside its file for the image model, which looks at clips elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.data.video import Frame

SIDE = 448
"""Shorter side of what is kept, pixels; image models see 224 to 384."""


def stills_path(clip: Path) -> Path:
    """Where the frames of a clip's file lie."""
    return clip.with_suffix(".npy")


def keep_stills(frames: Iterable[Frame], count: int, clip: Path) -> Iterator[Frame]:
    """The same frames; writes those that are kept once all have passed.

    Args:
        frames: of the clip.
        count: how many there are.
        clip: its file.
    """
    wanted, kept = {0, count // 2, count - 1}, []
    for number, frame in enumerate(frames):
        if number in wanted:
            kept.append(_small(frame))
        yield frame
    np.save(stills_path(clip), np.stack(kept))


def load_stills(clip: Path) -> NDArray[np.uint8]:
    """(K, H, W, 3) frames in RGB, one to three."""
    return np.asarray(np.load(stills_path(clip)), np.uint8)


def _small(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    scale = SIDE / min(height, width)
    if scale >= 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
