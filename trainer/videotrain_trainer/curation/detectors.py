"""What finds cuts and dissolves: a detector of changes beside one of dissolves, or a network that knows both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.dissolves import Dissolves
from videotrain_trainer.curation.shot_network import ShotNetwork
from videotrain_trainer.data.video import Frame

SHORTEST_SHOT = 1
"""Frames between two cuts that are told apart; too short shots are dropped later, with a reason."""
SHIFTED = 0.5
"""Response of phase correlation from which on two pictures are one, shifted; above 0.8 for shaken and fast ones, below
0.2 across cuts."""


class Detector(Protocol):
    """Sees all frames of a video, each once and in order."""

    def see(self, number: int, frame: Frame, grey: NDArray[np.uint8]) -> Sequence[int]:
        """First frames of new shots that are known now and were not before.

        Args:
            number: of the frame, from 0.
            frame: (H, W, 3) in BGR.
            grey: (H, W) of the same.
        """

    def finish(self) -> Sequence[int]:
        """The rest of them, once all frames were seen."""

    def dissolves(self) -> list[tuple[int, int]]:
        """First and end frames of passages in which one shot becomes another; after `finish`."""


def shot_detector(task: CurateTask, fps: float) -> Detector:
    """The detector that a task asks for, for one video."""
    if task.shot_detector == "transnetv2":
        return ShotNetwork(task.shot_probability)
    return ChangeDetector(task.shot_threshold, fps)


class ChangeDetector:
    """PySceneDetect's ContentDetector, and the parabola of variances that a dissolve leaves.

    Args:
        threshold: of the content's change.
        fps: of the video.
    """

    def __init__(self, threshold: float, fps: float) -> None:
        self._cuts = ContentDetector(threshold=threshold, min_scene_len=SHORTEST_SHOT)
        self._dissolves = Dissolves()
        self._fps = fps
        self._before = np.zeros((0, 0), np.uint8)

    def see(self, number: int, frame: Frame, grey: NDArray[np.uint8]) -> Sequence[int]:
        """As Detector."""
        found = [cut.frame_num for cut in self._cuts.process_frame(FrameTimecode(number, fps=self._fps), frame)]
        self._dissolves.see(grey)
        shifted = bool(found) and number > 0 and is_shifted(self._before, grey)
        self._before = grey
        return [] if shifted else found

    def finish(self) -> Sequence[int]:
        """As Detector: a change is known at once."""
        return ()

    def dissolves(self) -> list[tuple[int, int]]:
        """As Detector."""
        return self._dissolves.spans()


def is_shifted(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> bool:
    """Whether one picture (H, W) is the other, shifted: a camera that shakes or turns fast, which is no cut.

    A detector of changes takes each frame of it for a new shot.
    """
    size = (max(8, before.shape[1] // 2), max(8, before.shape[0] // 2))
    one, other = (
        np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.float32) for picture in (before, after)
    )
    _, response = cv2.phaseCorrelate(one, other, cv2.createHanningWindow(size, cv2.CV_32F))
    return bool(response > SHIFTED)
