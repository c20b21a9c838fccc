"""Stage 3: shots between cuts, and clips of the wanted length in them."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.draft import Draft, Piece


def run(draft: Draft, task: CurateTask) -> None:
    """Cut shots into pieces. A shot shorter than the minimum becomes a dropped piece."""
    scan, fps = draft.measured(), float(draft.header().fps)
    edges = [0, *scan.cuts, len(scan.times)]
    for first, end in pairwise(edges):
        for start, stop in cut_shot(first, end, fps, task.min_seconds, task.max_seconds):
            piece = Piece(start, stop)
            seconds = (stop - start) / fps
            if stop - start < ceil(task.min_seconds * fps - 0.5):
                piece.drop("too-short", f"shot of {seconds:.3g} s, at least {task.min_seconds:g} s")
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
