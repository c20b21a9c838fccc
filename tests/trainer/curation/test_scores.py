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
from videotrain_trainer.curation.detectors import is_shifted
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


def noisy(seed: int, strength: float, moving: bool) -> planted.Scene:
    """A scene under strong noise, that stands still or moves slowly."""
    inner = planted.scene(seed, 0.3)
    first = inner(0)

    def frame(number: int) -> np.ndarray:
        noise = np.random.default_rng((seed, number, 1)).normal(0, strength, first.shape)
        return np.clip((inner(number) if moving else first) + noise, 0, 255).astype(np.uint8)

    return frame


@pytest.mark.parametrize("seed", [5, 6])
def test_noise_over_a_still_picture_is_no_motion_and_slow_motion_under_it_is(seed):
    still, slow = (measured(noisy(seed, 8, moving)) for moving in (False, True))
    assert still["motion"] > TASK.min_motion  # which neighbouring frames alone do not tell
    assert still["change"] < TASK.min_change / 1.5
    assert slow["change"] > 1.5 * TASK.min_change


def test_a_railing_that_a_camera_pans_along_is_no_watermark():
    inner = planted.scene(31, 2.0)

    def railed(number: int) -> np.ndarray:
        picture = inner(number)
        for left in (-60, 60, 180):
            at = (left + number % 3, number % 3)  # along itself
            for paint, aside in (((20, 20, 20), 0), ((230, 230, 230), 6)):
                ends = (at[0] + aside - 400, at[1] - 400), (at[0] + aside + 400, at[1] + 400)
                cv2.line(picture, *ends, paint, 4, cv2.LINE_AA)
        return picture

    assert measured(railed)["watermark"] == 0


def test_fast_and_shaken_pictures_are_no_cuts():
    wide, draw = planted.canvas(np.random.default_rng(7), 400, 700).astype(np.uint8), np.random.default_rng(8)
    before, shaken, other = wide[100:356, 150:600], wide[112:368, 138:588], planted.canvas(draw, 256, 450)
    assert is_shifted(before.mean(axis=2).astype(np.uint8), shaken.mean(axis=2).astype(np.uint8))
    assert not is_shifted(before.mean(axis=2).astype(np.uint8), other.mean(axis=2).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_a_clip_of_one_frame_that_may_be_blurred_but_not_still(tmp_path, suffix):
    for name, scene, reason in (("sharp", planted.scene(41), None), ("soft", planted.blurred(42), "blurred")):
        path = tmp_path / f"{name}{suffix}"
        assert cv2.imwrite(str(path), scene(0)[..., ::-1])
        (clip,) = curate_file(path, name, tmp_path, CurateTask(), lambda share: None)["clips"]
        assert (clip["frames"], clip["width"], clip["height"], clip["kept"]) == (1, 320, 180, True)
        drop = drop_by(clip, CurateTask())
        assert (drop and drop["reason"]) == reason
        assert (tmp_path / f"{clip['uid']}.mp4").stat().st_size == clip["bytes"]


def test_a_picture_of_a_wrong_shape_is_dropped_and_its_bars_are_cut_off(tmp_path):
    inner = planted.scene(43)(0)
    cv2.imwrite(str(tmp_path / "strip.png"), inner[:40])
    assert curate_file(tmp_path / "strip.png", "x", tmp_path, TASK, lambda share: None)["dropped"][0] == "aspect"
    cv2.imwrite(str(tmp_path / "boxed.png"), planted.bordered(44, 22, 0)(0))
    (clip,) = curate_file(tmp_path / "boxed.png", "y", tmp_path, TASK, lambda share: None)["clips"]
    assert (clip["width"], clip["height"]) == (320, 132)
