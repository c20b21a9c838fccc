"""The stages of curation in their order: cheap before dear, and every drop with its reason.

A stage that drops is one that saves the work of those after it. All other drops are bounds on the scores of whole clips
(`bounds`): they are applied to the catalogue, and change without a video being read again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation import clips, pieces, probe, shots
from videotrain_trainer.curation.draft import Draft, Dropped, Piece

Stage = Callable[[Draft, CurateTask], None]
STAGES: tuple[tuple[str, Stage], ...] = (
    ("probe", probe.run),
    ("shots", shots.run),
    ("pieces", pieces.run),
    ("clips", clips.run),
)
"""Each stage adds to the draft, drops pieces of it, or raises Dropped for the whole video."""


def curate_file(
    path: Path, content: str, out: Path, task: CurateTask, progress: Callable[[float], None]
) -> dict[str, Any]:
    """One raw video through all stages.

    Args:
        path: the raw video.
        content: hash of its bytes.
        out: folder for `<uid>.mp4` files.
        task: bounds.
        progress: told the share of the work that is done.

    Returns:
        `dropped`: [reason, detail, value, bound] or None for the whole video; `clips`: a row per piece, dropped or not.
    """
    draft = Draft(path=path, content=content, out=out, progress=progress)
    try:
        for _, stage in STAGES:
            stage(draft, task)
    except Dropped as dropped:
        return {"dropped": [dropped.reason, dropped.detail, dropped.value, dropped.bound], "clips": []}
    return {"dropped": None, "clips": [_row(draft, piece) for piece in draft.pieces]}


def _row(draft: Draft, piece: Piece) -> dict[str, Any]:
    start, end = draft.seconds(piece)
    info, crop = draft.header(), piece.crop
    shown = (crop.width, crop.height) if crop else (info.width, info.height)
    row = {"frames": piece.end - piece.first, "bytes": 0, "crc32c": 0} | piece.row
    row |= {"start": round(start, 6), "end": round(end, 6), "duration": round(end - start, 6)}
    row |= {"aspect": shown[0] / shown[1], "border": 1 - shown[0] * shown[1] / (info.width * info.height)}
    row |= {"kept": piece.kept, "reason": piece.reason, "detail": piece.detail}
    return row | {"value": piece.value, "bound": piece.bound}
