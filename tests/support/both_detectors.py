"""Curation under either detector of shots."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from videotrain_api.resource.stages import CurateTask, ShotDetector
from videotrain_trainer.curation import probe, shots
from videotrain_trainer.curation.draft import Draft, Scan
from videotrain_trainer.curation.pipeline import curate_file

DETECTORS: tuple[ShotDetector, ...] = ("content", "transnetv2")


def scan_of(path: Path, task: CurateTask) -> Scan:
    """What is known of a video once its shots are found."""
    draft = Draft(path=path, content="x", out=path.parent, progress=lambda share: None)
    for stage in (probe, shots):
        stage.run(draft, task)
    return draft.measured()


def curate_by_each(path: Path, content: str, out: Path, task: CurateTask) -> dict[str, dict[str, Any]]:
    """What a stage makes of a video, by detector; where both part it alike, what comes behind is done once for both."""
    found: dict[str, dict[str, Any]] = {}
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    for detector in DETECTORS:
        own = task.model_copy(update={"shot_detector": detector})
        scan = scan_of(path, own)
        parted = (*scan.cuts, *scan.dissolves)
        if parted not in done:
            done[parted] = curate_file(path, content, out, own, lambda share: None)
        found[detector] = copy.deepcopy(done[parted])
    return found
