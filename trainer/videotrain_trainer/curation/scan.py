"""Stage 2: one decode of every frame that feeds all measurements, and the check that the file is whole."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.draft import Draft, Dropped, Scan
from videotrain_trainer.data.video import Unreadable, decode

SCAN_LINES = 256
"""Scores depend on the resolution, so every video is measured at this height."""
THUMB = 32
SHORTEST_SHOT = 1
"""Frames between two cuts that the detector tells apart; too short shots are dropped later, with a reason."""


def run(draft: Draft, task: CurateTask) -> None:
    """Measure every frame.

    Raises:
        Dropped: unreadable, one-frame or too-short.
    """
    try:
        rows = list(_measure(draft, task))
    except Unreadable as error:
        raise Dropped("unreadable", str(error)) from error
    if len(rows) < 2:
        raise Dropped("one-frame", f"{len(rows)} frames, at least 2 needed")
    times, change, sharpness, thumbs, cuts = zip(*rows, strict=True)
    draft.scan = Scan(
        times=np.array(times),
        change=np.array(change, np.float32),
        sharpness=np.array(sharpness, np.float32),
        thumbs=np.stack(thumbs),
        cuts=sorted({cut for found in cuts for cut in found if 0 < cut < len(rows)}),
    )
    seconds = draft.scan.times[-1] + 1 / float(draft.header().fps)
    if seconds < task.min_seconds:
        raise Dropped("too-short", f"{seconds:.3g} s, at least {task.min_seconds:g} s")


Row = tuple[float, float, float, NDArray[np.uint8], list[int]]


def _measure(draft: Draft, task: CurateTask) -> Iterator[Row]:
    info = draft.header()
    size = (SCAN_LINES, max(16, round(info.width * SCAN_LINES / info.height / 2) * 2))
    expected = info.frames or max(1, int(info.seconds * float(info.fps)))
    detector = ContentDetector(threshold=task.shot_threshold, min_scene_len=SHORTEST_SHOT)
    before = None
    for number, (time, frame) in enumerate(decode(draft.path, size, "bgr24")):
        luma = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        change = 0.0 if before is None else float(cv2.absdiff(luma, before).mean())
        found = detector.process_frame(FrameTimecode(number, fps=float(info.fps)), frame)
        thumb = cv2.resize(luma, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
        yield time, change, float(cv2.Laplacian(luma, cv2.CV_32F).var()), thumb, [cut.frame_num for cut in found]
        before = luma
        draft.progress(0.5 * min(1.0, number / expected))
