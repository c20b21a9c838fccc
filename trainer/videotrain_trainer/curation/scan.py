"""Stage 2: one decode of every frame that feeds all measurements, and the check that the file is whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import cv2
import imagehash
import numpy as np
from PIL import Image
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.draft import Draft, Dropped, Scan
from videotrain_trainer.data.video import Unreadable, decode

SCAN_LINES = 256
"""Scores depend on the resolution, so every video is measured at this height."""
THUMB = 32
MOST_FRAMES = 24 * 3600 * 60
"""Frames of a video: a day at 60 per second."""
MOST_CUTS = 100_000
"""Cuts of a video; each is a row of the drop report or a clip."""
SHORTEST_SHOT = 1
"""Frames between two cuts that the detector tells apart; too short shots are dropped later, with a reason."""


def run(draft: Draft, task: CurateTask) -> None:
    """Measure every frame.

    Raises:
        Dropped: unreadable, one-frame, too-short, too-long or too-many-cuts.
    """
    try:
        draft.scan = collect(_measure(draft, task))
    except Unreadable as error:
        raise Dropped("unreadable", str(error)) from error
    frames = len(draft.scan.times)
    if frames < 2:
        raise Dropped("one-frame", f"{frames} frames, at least 2 needed")
    seconds = draft.scan.times[-1] + 1 / float(draft.header().fps)
    if seconds < task.min_seconds:
        raise Dropped("too-short", f"{seconds:.3g} s, at least {task.min_seconds:g} s")


Row = tuple[float, float, float, int, list[int]]
"""Time, change, sharpness, hash, cuts found."""


def collect(rows: Iterable[Row]) -> Scan:
    """Keep what was measured in bounded memory.

    Raises:
        Dropped: too-long or too-many-cuts.
    """
    times, change, sharpness, hashes = array("d"), array("f"), array("f"), array("Q")
    cuts: set[int] = set()
    for time, moved, sharp, phash, found in rows:
        if len(times) == MOST_FRAMES:
            raise Dropped("too-long", f"more than {MOST_FRAMES} frames; split the video")
        times.append(time)
        change.append(moved)
        sharpness.append(sharp)
        hashes.append(phash)
        cuts.update(found)
        if len(cuts) > MOST_CUTS:
            raise Dropped("too-many-cuts", f"more than {MOST_CUTS} cuts in {len(times)} frames")
    return Scan(
        times=np.array(times, np.float64),
        change=np.array(change, np.float32),
        sharpness=np.array(sharpness, np.float32),
        hashes=np.array(hashes, np.uint64),
        cuts=sorted(cut for cut in cuts if 0 < cut < len(times)),
    )


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
        phash = int(str(imagehash.phash(Image.fromarray(thumb))), 16)
        yield time, change, float(cv2.Laplacian(luma, cv2.CV_32F).var()), phash, [cut.frame_num for cut in found]
        before = luma
        draft.progress(0.5 * min(1.0, number / expected))
