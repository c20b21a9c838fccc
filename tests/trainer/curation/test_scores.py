"""Each score tells its fault from good clips, and bounds on it need no video."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import planted_faults as planted

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.bounds import drop_by
from videotrain_trainer.curation.pipeline import curate_file
from videotrain_trainer.curation.scores.interface import ClipFrame
from videotrain_trainer.curation.scores.motion import Motion
from videotrain_trainer.curation.scores.table import ClipScores

TASK = CurateTask(min_seconds=1.0)


def measured(scene: planted.Scene, frames: int = planted.FRAMES) -> dict:
    scores = ClipScores(TASK, frames)
    for _ in scores.watch(scene(number) for number in range(frames)):
        pass
    return scores.columns()


def vmaf_motion(frames: list[np.ndarray]) -> float:
    """The published definition in float64: mean absolute difference of luma after a blur of five taps."""
    taps = np.array([3571, 16004, 26386, 16004, 3571]) / 65536
    lumas = [ClipFrame(0, 1, frame).i420[:256].astype(np.float64) for frame in frames]
    blurred = [cv2.sepFilter2D(luma, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REFLECT_101) for luma in lumas]
    return float(np.mean([np.abs(one - other).mean() for one, other in pairwise(blurred)]))


def test_motion_is_that_of_vmaf():
    scene, score = planted.scene(3), Motion()
    frames = [scene(number) for number in range(12)]
    for number, frame in enumerate(frames):
        score.see(ClipFrame(number, len(frames), frame))
    # libavfilter rounds to integers after each pass and reflects edges in its own way.
    assert score.columns()["motion"] == pytest.approx(vmaf_motion(frames), rel=0.03)


def curated(tmp_path: Path, scene: planted.Scene, frames: int = planted.FRAMES, **fields) -> dict:
    path = planted.paint(tmp_path / "raw.mp4", scene, frames)
    task = TASK.model_copy(update=fields)
    return curate_file(path, "x", tmp_path, task, lambda share: None)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (planted.still, "still"),
        (planted.shaken, "shaken"),
        (planted.blurred, "blurred"),
        (planted.marked, "watermark"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_planted_fault_is_dropped_for_what_it_is(tmp_path, fault, reason, seed):
    (clip,) = curated(tmp_path, fault(seed))["clips"]
    drop = drop_by(clip, TASK)
    assert drop is not None
    assert drop["reason"] == reason
    assert f"{drop['value']:.3g}" in drop["detail"]
    assert drop["detail"].endswith(f"{drop['bound']:g}")


@pytest.mark.parametrize("seed", range(20, 24))
def test_a_good_clip_stays(tmp_path, seed):
    (clip,) = curated(tmp_path, planted.scene(seed))["clips"]
    assert drop_by(clip, TASK) is None
