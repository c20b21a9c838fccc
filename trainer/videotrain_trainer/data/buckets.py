"""Which size class a clip belongs to: pure arithmetic over frames, area and shape.

The rules are Open-Sora 2.0's (its data layer): integer strides down to at most 24 frames per second, no enlarging from
much smaller sources, the longest length that fits, the nearest listed shape. Two things differ. A clip that is longer
than the longest length gives several samples, one window after another, because a small data set cannot afford to throw
its rest away. And a row of one frame takes the first frame of every clip, since curated sets hold no pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Any

from videotrain_api.config.aspect import shapes, side_of
from videotrain_api.resource.stages import Bucket, ScoreBounds

FPS_MAX = 24
"""Clips are thinned out to at most so many frames per second."""
AREA_SLACK = 0.8
"""A clip may have so much less area than its class; more enlarging would teach the model blur."""


@dataclass(frozen=True)
class Window:
    """A sample's frames: `frames` of them from `start`, every `stride`-th frame of the clip."""

    start: int
    """First frame, counted in the clip's own frames."""
    frames: int
    stride: int


def frame_stride(fps: float) -> tuple[int, float]:
    """Stride and the frame rate that it leaves.

    Rates below 24 stay as they are; from 24 on the rate becomes a whole number (29.97: every second frame, 14 fps).
    """
    if fps < FPS_MAX:
        return 1, fps
    stride = ceil(fps / FPS_MAX)
    return stride, float(floor(fps / stride))


def fits_area(height: int, width: int, resolution: str) -> bool:
    """Has the clip enough pixels for the class?"""
    return height * width >= AREA_SLACK * side_of(resolution) ** 2


def lengths(row: Bucket, step: int) -> list[int]:
    """Frame counts of a row, longest first; they differ by `step`, the autoencoder's temporal compression."""
    shortest = row.frames if row.min_frames is None else row.min_frames
    return list(range(row.frames, shortest - 1, -step))


def windows(clip_frames: int, fps: float, row: Bucket, step: int) -> list[Window]:
    """The samples that a clip gives to a row: windows from its start without overlap, each as long as possible.

    Args:
        clip_frames: of the clip, at its own rate.
        fps: of the clip.
        row: of the bucket table.
        step: the autoencoder's temporal compression.
    """
    stride, _ = frame_stride(fps)
    if row.frames == 1:
        return [Window(0, 1, stride)] if clip_frames else []
    found: list[Window] = []
    start, allowed = 0, lengths(row, step)
    while True:
        left = (clip_frames - start) // stride
        length = next((length for length in allowed if length <= left), None)
        if length is None:
            return found
        found.append(Window(start, length, stride))
        start += length * stride


def aspect_names(row: Bucket, grid: int) -> list[str]:
    """Shapes of a row on a grid of `grid` pixels: its own list, or the whole table."""
    return list(shapes(row.resolution, grid, row.aspect_ratios))


def nearest_aspect(height: int, width: int, names: Sequence[str]) -> str:
    """The width:height name whose height / width is nearest, by absolute difference; the first one of equals."""
    return min(names, key=lambda name: abs(height / width - _height_by_width(name)))


def bucket_name(resolution: str, frames: int, aspect: str) -> str:
    """Such as `256px/33f/16:9`: everything that shares it has one tensor shape."""
    return f"{resolution}/{frames}f/{aspect}"


def row_name(row: Bucket) -> str:
    """Names what a row of a table encodes: `256px/33f`, `256px/5-33f`, `256px/33f/16:9,1:1`.

    Stages that share this name share the encoded samples.
    """
    shortest = row.frames if row.min_frames is None else row.min_frames
    span = f"{row.frames}f" if shortest == row.frames else f"{shortest}-{row.frames}f"
    return "/".join([row.resolution, span, *([",".join(row.aspect_ratios)] if row.aspect_ratios else [])])


def uniform(seed: int, *parts: object) -> float:
    """A number in [0, 1) that only its arguments decide."""
    *shared, last = map(str, parts)
    return uniforms(seed, *shared)(last)


def uniforms(seed: int, *shared: object) -> Callable[[str], float]:
    """`uniform` of any number of last arguments; what they share is hashed once."""
    begun = hashlib.blake2b("".join(f"{part}\0" for part in (seed, *shared)).encode(), digest_size=7)

    def uniform_of(last: str) -> float:
        digest = begun.copy()
        digest.update(last.encode())
        return int.from_bytes(digest.digest(), "big") / 2.0**56

    return uniform_of


def keeps(row: Bucket, seed: int, clip: str) -> bool:
    """The draw of `keepProbability`: one per clip and resolution, the same in every process and every attempt."""
    return keeper(row, seed)(clip)


def keeper(row: Bucket, seed: int) -> Callable[[str], bool]:
    """`keeps` of any number of clips."""
    if row.keep_probability >= 1:
        return lambda _: True
    draw = uniforms(seed, "keep", row.resolution)
    return lambda clip: draw(clip) < row.keep_probability


def preference(rows: Sequence[Bucket]) -> list[list[Bucket]]:
    """Rows by resolution, largest first; within one, longest first. Rows of one frame are left out."""
    sides = sorted({side_of(row.resolution) for row in rows}, reverse=True)
    videos = [row for row in rows if row.frames > 1]
    grouped = [[row for row in videos if side_of(row.resolution) == side] for side in sides]
    return [sorted(group, key=lambda row: -row.frames) for group in grouped if group]


def assign(clip: str, encoded: Collection[str], rows: Sequence[Bucket], seed: int) -> Bucket | None:
    """The one video row of a stage that a clip is trained in.

    The longest row of the largest resolution that the clip was encoded for; if its draw fails, the clip falls through
    to the next smaller resolution, not to a shorter length.

    Args:
        clip: uid of the clip.
        encoded: names of the rows that the clip has samples of.
        rows: bucket table of the stage.
        seed: of the stage.
    """
    for group in preference(rows):
        row = next((row for row in group if row_name(row) in encoded), None)
        if row is not None and keeps(row, seed, clip):
            return row
    return None


def within(scores: Mapping[str, Any], bounds: Sequence[ScoreBounds]) -> bool:
    """Whether scores lie within all bounds, ends included; one that is missing lies in none.

    Args:
        scores: by name.
        bounds: of a stage.
    """
    for bound in bounds:
        low, high = -inf if bound.min is None else bound.min, inf if bound.max is None else bound.max
        score = scores[bound.score]
        if (bound.min, bound.max) != (None, None) and not (score is not None and low <= score <= high):
            return False
    return True


def _height_by_width(name: str) -> float:
    width, height = name.split(":")
    return float(height) / float(width)
