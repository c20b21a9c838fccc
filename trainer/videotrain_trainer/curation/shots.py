"""Stage 2: one decode of every frame that finds cuts and black borders, and the check that the file is whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import cv2
import numpy as np

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.borders import Border, border_of
from videotrain_trainer.curation.detectors import Detector, shot_detector
from videotrain_trainer.curation.draft import Draft, Dropped, Scan
from videotrain_trainer.data.video import Unreadable, VideoInfo, decode

SCAN_LINES = 256
"""Cuts and borders are looked for at this height."""
MOST_FRAMES = 24 * 3600 * 60
"""Frames of a video: a day at 60 per second."""
MOST_CUTS = 100_000
"""Cuts of a video; each is a row of the drop report or a clip."""


def run(draft: Draft, task: CurateTask) -> None:
    """Look at every frame.

    Raises:
        Dropped: unreadable, one-frame, too-short, too-long or too-many-cuts.
    """
    detector = shot_detector(task, float(draft.header().fps))
    try:
        if draft.is_picture:
            draft.scan = collect(islice(_looked_at(draft, detector), 1))
            return
        draft.scan = collect(_looked_at(draft, detector))
    except Unreadable as error:
        raise Dropped("unreadable", str(error)) from error
    draft.scan.cuts = sorted({*draft.scan.cuts, *detector.finish()})
    draft.scan.dissolves = [
        span for span in detector.dissolves() if not any(span[0] < cut < span[1] for cut in draft.scan.cuts)
    ]
    frames = len(draft.scan.times)
    if frames < 2:
        raise Dropped("one-frame", f"{frames} frames, at least 2 needed", frames, 2)
    seconds = draft.scan.times[-1] + 1 / float(draft.header().fps)
    if seconds < task.min_seconds:
        raise Dropped("too-short", f"{seconds:.3g} s, at least {task.min_seconds:g} s", seconds, task.min_seconds)


def scan_size(info: VideoInfo) -> tuple[int, int]:
    """(height, width) at which a video is looked at."""
    return SCAN_LINES, max(16, round(info.width * SCAN_LINES / info.height / 2) * 2)


Row = tuple[float, Border, Sequence[int]]
"""Time, black lines at the edges, cuts found."""


def collect(rows: Iterable[Row]) -> Scan:
    """Keep what was found in bounded memory.

    Raises:
        Dropped: too-long or too-many-cuts.
    """
    times, borders = array("d"), array("H")
    cuts: set[int] = set()
    for time, border, found in rows:
        if len(times) == MOST_FRAMES:
            raise Dropped("too-long", f"more than {MOST_FRAMES} frames; split the video")
        times.append(time)
        borders.extend(border)
        cuts.update(found)
        if len(cuts) > MOST_CUTS:
            raise Dropped("too-many-cuts", f"more than {MOST_CUTS} cuts in {len(times)} frames")
    return Scan(
        times=np.array(times, np.float64),
        borders=np.array(borders, np.uint16).reshape(-1, 4),
        cuts=sorted(cut for cut in cuts if 0 < cut < len(times)),
    )


def _looked_at(draft: Draft, detector: Detector) -> Iterator[Row]:
    info = draft.header()
    expected = info.frames or max(1, int(info.seconds * float(info.fps)))
    for number, (time, frame) in enumerate(decode(draft.path, scan_size(info), "bgr24")):
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8)
        yield time, border_of(grey), detector.see(number, frame, grey)
        draft.progress(0.5 * min(1.0, number / expected))
