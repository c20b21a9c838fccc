"""Which of the two detectors of shots finds what, in painted and in filmed scenes that change in known ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import filmed_faults as filmed
from support import planted_faults as planted
from support.both_detectors import DETECTORS, scan_of

from videotrain_api.resource.stages import CurateTask, ShotDetector
from videotrain_trainer.curation.draft import Scan

EACH = 10
SETS = {"painted": (planted, 400, 20), "filmed": (filmed, 30_000, 16)}
"""Where scenes come from, their first seed, and the encoder's crf."""


def scanned(folder: Path, which: str, scene: planted.Scene, frames: int, detector: ShotDetector) -> Scan:
    path = planted.paint(folder / "raw.mp4", scene, frames, crf=SETS[which][2])
    return scan_of(path, CurateTask(min_seconds=1.0, shot_detector=detector))


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.timeout(3600)
def test_cuts_dissolves_and_whole_shots(tmp_path, which, detector, record_property):
    kind, first, _ = SETS[which]
    middle, cuts, fades, whole = kind.FRAMES, 0, 0, 0
    for seed in range(first, first + EACH):
        found = scanned(tmp_path, which, kind.cut(seed), 2 * middle, detector)
        cuts += found.cuts == [middle] and not found.dissolves
        length = 12 + 2 * (seed - first)
        found = scanned(tmp_path, which, kind.dissolve(seed, length), 2 * middle, detector)
        spans = [span for span in found.dissolves if span[0] < middle < span[1]]
        fades += len(spans) == len(found.dissolves) == 1 and not found.cuts
        found = scanned(tmp_path, which, kind.scene(seed), middle, detector)
        whole += not found.cuts and not found.dissolves
    record_property("found", f"cuts {cuts}, dissolves {fades}, whole shots {whole} of {EACH} each")
    print(f"{detector} on {which}: cuts {cuts}, dissolves {fades}, whole shots {whole} of {EACH} each")
    assert cuts >= 0.9 * EACH
    assert fades >= 0.8 * EACH
    assert whole >= 0.9 * EACH


@pytest.mark.timeout(3600)
def test_a_dissolve_into_a_shot_that_is_cut_soon(tmp_path):
    """Two changes within a second: the network tells both, where the parabola of one is broken by the other."""
    found = 0
    for seed in range(500, 500 + EACH):
        third = planted.scene(seed + 9000)
        fade, length = planted.dissolve(seed, 16), 2 * planted.FRAMES

        def scene(number: int, fade=fade, third=third) -> object:
            return fade(number) if number < planted.FRAMES + 16 else third(number - planted.FRAMES - 16)

        scan = scanned(tmp_path, "painted", scene, length, "transnetv2")
        spans = [span for span in scan.dissolves if span[0] < planted.FRAMES < span[1]]
        found += len(spans) == 1 and scan.cuts == [planted.FRAMES + 16]
    assert found >= 0.8 * EACH
