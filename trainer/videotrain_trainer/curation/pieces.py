"""Stage 3: shots between cuts without their black borders, and clips of the wanted length in them."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.borders import crop_of
from videotrain_trainer.curation.draft import Draft, Piece
from videotrain_trainer.curation.shots import scan_size


def run(draft: Draft, task: CurateTask) -> None:
    """Cut shots into pieces. A shot shorter than the minimum becomes a dropped piece."""
    scan, info = draft.measured(), draft.header()
    fps, size = float(info.fps), (info.height, info.width)
    edges = sorted({0, *scan.cuts, len(scan.times), *(edge for span in scan.dissolves for edge in span)})
    for first, end in pairwise(edges):
        crop = crop_of(scan.borders[first:end], scan_size(info), size)
        if (first, end) in scan.dissolves:
            piece = Piece(first, end, crop=crop)
            seconds = (end - first) / fps
            piece.drop("dissolve", f"one shot fades into the next for {seconds:.3g} s", seconds, None)
            draft.pieces.append(piece)
            continue
        for start, stop in cut_shot(first, end, fps, task.min_seconds, task.max_seconds):
            piece = Piece(start, stop, crop=crop)
            seconds = (stop - start) / fps
            if not draft.is_picture and stop - start < ceil(task.min_seconds * fps - 0.5):
                detail = f"shot of {seconds:.3g} s, at least {task.min_seconds:g} s"
                piece.drop("too-short", detail, seconds, task.min_seconds)
            draft.pieces.append(piece)


def cut_shot(first: int, end: int, fps: float, shortest: float, longest: float) -> list[tuple[int, int]]:
    """Equal pieces of at most `longest` seconds, so that no rest is thrown away.

    Only if equal pieces would be shorter than `shortest` seconds are pieces of full length taken, with one short rest.
    """
    frames, most = end - first, max(1, int(longest * fps + 0.5))
    number = ceil(frames / most)
    if number > 1 and frames // number < shortest * fps - 0.5:
        edges = [*range(first, end, most), end]
    else:
        edges = [first + frames * index // number for index in range(number + 1)]
    return list(pairwise(edges))
