"""Stage 4: every piece as a file of one kind, measured on its way: H.264, at most 30 frames per second, limited size.

One decode of the raw video feeds the files and all scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

import cv2
import google_crc32c
import numpy as np
import xxhash

from videotrain_api.resource.stages import CurateTask
from videotrain_trainer.curation.draft import Draft, Dropped, Piece
from videotrain_trainer.curation.scores.table import ClipScores
from videotrain_trainer.curation.stills import keep_stills
from videotrain_trainer.data.video import Frame, Unreadable, decode, even_size, write_mp4

MAX_FPS = 30
IN_PLACE = "in_place"
"""Field of a piece that is read where its video lies."""
FILE_VERSION = 3
"""Part of every uid; rises when the same piece would give another file or other scores."""


def run(draft: Draft, task: CurateTask) -> None:
    """Name all pieces; write and measure those that are left.

    Raises:
        Dropped: unreadable; only if the file changed since it was looked at.
    """
    info = draft.header()
    fps = info.fps / ceil(info.fps / MAX_FPS)
    for piece in draft.pieces:
        in_place = task.in_place and _is_as_it_is(draft, piece, fps)
        height, width = (info.height, info.width) if in_place else clip_size(draft, piece, task)
        name = uid(draft.content, piece, task, in_place)
        piece.row = {"uid": name, "width": width, "height": height, "fps": float(fps), IN_PLACE: in_place}
    # Borders are cut off in the video's own pixels; without any, the decoder scales at once, which is faster.
    cropped = any(piece.crop for piece in draft.pieces)
    size = (info.height, info.width) if cropped else even_size(info.height, info.width, task.long_side)
    try:
        frames = _told(draft, size)
        for piece in draft.pieces:
            if piece.kept:
                _write(draft, piece, frames, fps, task)
    except Unreadable as error:
        raise Dropped("unreadable", str(error)) from error


def clip_size(draft: Draft, piece: Piece, task: CurateTask) -> tuple[int, int]:
    """(height, width) of a piece's file."""
    part = piece.crop or draft.header()
    return even_size(part.height, part.width, task.long_side)


def uid(content: str, piece: Piece, task: CurateTask, in_place: bool = False) -> str:
    """20 hex digits (80 bits) of the raw file's content, the span and what decides the file."""
    decides = "in place" if in_place else task.long_side
    text = f"{FILE_VERSION}|{content}|{piece.first}|{piece.end}|{decides}"
    return xxhash.xxh3_128_hexdigest(text.encode())[:20]


def picks(draft: Draft, piece: Piece, fps: Fraction) -> list[int]:
    """Raw frames that show a piece at a constant rate: for each moment the nearest one by time."""
    if piece.end - piece.first == 1:
        return [piece.first]
    start, end = draft.seconds(piece)
    times = draft.measured().times[piece.first : piece.end]
    moments = start + np.arange(max(1, round((end - start) * float(fps)))) / float(fps)
    after = np.clip(np.searchsorted(times, moments), 1, max(1, len(times) - 1))
    nearest = np.where(moments - times[after - 1] <= times[after] - moments, after - 1, after)
    return [piece.first + int(number) for number in nearest]


def _is_as_it_is(draft: Draft, piece: Piece, fps: Fraction) -> bool:
    """Whether a piece has each frame of its video once, whole and in turn, so that it needs no file of its own."""
    whole = not draft.is_picture and piece.crop is None and piece.end - piece.first == len(draft.measured().times)
    return whole and picks(draft, piece, fps) == list(range(piece.end))


def _write(draft: Draft, piece: Piece, frames: Iterator[tuple[int, Frame]], fps: Fraction, task: CurateTask) -> None:
    path = draft.out / f"{piece.row['uid']}.mp4"
    numbers = picks(draft, piece, fps)
    scores = ClipScores(task, len(numbers))
    shown = _cropped(_chosen(frames, numbers), piece, clip_size(draft, piece, task))
    watched = scores.watch(shown)
    if task.image_model is not None:
        watched = keep_stills(watched, len(numbers), path)
    if piece.row[IN_PLACE]:
        path, count = draft.path, sum(1 for _ in watched)
    else:
        count = write_mp4(watched, path, fps)
    data = path.read_bytes()
    piece.row |= {"frames": count, "bytes": len(data), "crc32c": google_crc32c.value(data), **scores.columns()}


def _told(draft: Draft, size: tuple[int, int]) -> Iterator[tuple[int, Frame]]:
    """All frames with their numbers; each counts as progress, also between the pieces that are left."""
    total = len(draft.measured().times)
    for number, (_, frame) in enumerate(decode(draft.path, size)):
        yield number, frame
        draft.progress(0.5 + 0.5 * min(1.0, (number + 1) / total))


def _chosen(frames: Iterator[tuple[int, Frame]], numbers: list[int]) -> Iterator[Frame]:
    """The frames with these ascending numbers; takes no frame beyond the last one."""
    number, frame = next(frames)
    for wanted in numbers:
        while number < wanted:
            number, frame = next(frames)
        yield frame


def _cropped(frames: Iterator[Frame], piece: Piece, size: tuple[int, int]) -> Iterator[Frame]:
    """Frames without borders, scaled to (height, width)."""
    crop = piece.crop
    for frame in frames:
        part = frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width] if crop else frame
        if part.shape[:2] != size:
            part = np.asarray(cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        yield np.ascontiguousarray(part)
