"""What a score is, and the frames that it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.data.video import Frame

LINES = 256
"""Scores depend on the resolution, so every clip is measured at this height."""
Columns = dict[str, float | str]
"""Values by column of the clip catalogue."""


@dataclass(frozen=True)
class ClipFrame:
    """One frame of a clip as its file has it. What several scores need of it is computed once."""

    number: int
    """From 0."""
    count: int
    """Frames of the clip."""
    rgb: Frame
    """(H, W, 3) uint8, at the size of the file."""

    @cached_property
    def small(self) -> Frame:
        """(LINES, W, 3) uint8; W is even."""
        height, width = self.rgb.shape[:2]
        size = (max(16, round(width * LINES / height / 2) * 2), LINES)
        return np.asarray(cv2.resize(self.rgb, size, interpolation=cv2.INTER_AREA), np.uint8)

    @cached_property
    def i420(self) -> NDArray[np.uint8]:
        """`small` as video stores it: (1.5 LINES, W) with luma from 16 to 235 in the first LINES rows."""
        return np.asarray(cv2.cvtColor(self.small, cv2.COLOR_RGB2YUV_I420), np.uint8)

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """(LINES, W) from 0 to 255."""
        return np.asarray(cv2.cvtColor(self.small, cv2.COLOR_RGB2GRAY), np.uint8)

    def among(self, number: int) -> bool:
        """Whether this is one of `number` frames that are spread over the clip."""
        return self.number in spread(self.count, number)


def spread(count: int, number: int) -> list[int]:
    """Middles of `number` equal parts of `count` frames."""
    return [count * (2 * part + 1) // (2 * number) for part in range(number)]


class Score(Protocol):
    """Measures one clip whose frames come one by one, each once and in order; keeps no more of them than it needs."""

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""

    def columns(self) -> Columns:
        """What was measured, once all frames were seen."""
