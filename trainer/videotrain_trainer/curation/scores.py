"""Stage 4: the scores of every piece and the drops that they decide."""

from __future__ import annotations

import numpy as np

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.draft import Draft, Piece, Scan

BLUR_FRAMES = 5
HASH_FRAMES = 3


def run(draft: Draft, task: CurateTask) -> None:
    """Score all pieces that are left and drop those outside the bounds."""
    scan, info = draft.measured(), draft.header()
    for piece in draft.pieces:
        start, end = draft.seconds(piece)
        piece.scores = {
            "motion": motion(scan, piece),
            "blur": sharpness(scan, piece),
            "duration": round(end - start, 6),
            "aspect": info.width / info.height,
        }
        piece.phash = "".join(_phash(scan, number) for number in spread(piece, HASH_FRAMES))
        _drop_by_scores(piece, task)


def motion(scan: Scan, piece: Piece) -> float:
    """Mean absolute luma difference of neighbouring frames within the piece, 0-255."""
    inside = scan.change[piece.first + 1 : piece.end]
    return float(inside.mean()) if len(inside) else 0.0


def sharpness(scan: Scan, piece: Piece) -> float:
    """Variance of the Laplacian that three of five spread frames reach at least."""
    return float(np.median(scan.sharpness[spread(piece, BLUR_FRAMES)]))


def spread(piece: Piece, number: int) -> list[int]:
    """Middles of `number` equal parts of the piece."""
    return [piece.first + (piece.end - piece.first) * (2 * part + 1) // (2 * number) for part in range(number)]


def _phash(scan: Scan, number: int) -> str:
    return f"{int(scan.hashes[number]):016x}"


def _drop_by_scores(piece: Piece, task: CurateTask) -> None:
    moves, sharp = piece.scores["motion"], piece.scores["blur"]
    if moves < task.min_motion:
        piece.drop("still", f"motion {moves:.3g}, at least {task.min_motion:g}")
    if moves > task.max_motion:
        piece.drop("too-fast", f"motion {moves:.3g}, at most {task.max_motion:g}")
    if sharp < task.min_blur:
        piece.drop("blurred", f"sharpness {sharp:.3g}, at least {task.min_blur:g}")
