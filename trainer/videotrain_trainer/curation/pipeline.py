"""The stages of curation in their order: cheap before dear, and every drop with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation import normalise, pieces, probe, scan, scores
from videotrain_trainer.curation.draft import Draft, Dropped, Piece

Stage = Callable[[Draft, CurateTask], None]
STAGES: tuple[tuple[str, Stage], ...] = (
    ("probe", probe.run),
    ("scan", scan.run),
    ("pieces", pieces.run),
    ("scores", scores.run),
    ("normalise", normalise.run),
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
        `dropped`: [reason, detail] or None for the whole video; `clips`: a row per piece, kept or not.
    """
    draft = Draft(path=path, content=content, out=out, progress=progress)
    try:
        for _, stage in STAGES:
            stage(draft, task)
    except Dropped as dropped:
        return {"dropped": [dropped.reason, dropped.detail], "clips": []}
    return {"dropped": None, "clips": [_row(draft, piece) for piece in draft.pieces]}


def _row(draft: Draft, piece: Piece) -> dict[str, Any]:
    start, end = draft.seconds(piece)
    row = {"frames": piece.end - piece.first, "bytes": 0, "crc32c": 0} | piece.row | piece.scores
    row |= {"start": round(start, 6), "end": round(end, 6), "phash": piece.phash, "kept": piece.kept}
    return row | {"reason": piece.reason, "detail": piece.detail}
