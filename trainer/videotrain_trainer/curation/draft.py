"""What the stages of curation hand to each other about one raw video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.curation.borders import Crop
from videotrain_trainer.data.video import PICTURES, VideoInfo


class Dropped(Exception):
    """The whole raw video is dropped.

    Args:
        reason: one word.
        detail: the measured value and the bound, for people.
        value: what was measured, where it is a number.
        bound: what it should have been at least or at most.
    """

    def __init__(self, reason: str, detail: str, value: float | None = None, bound: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.value = value
        self.bound = bound


@dataclass
class Scan:
    """What the one pass over all frames found; 16 bytes per frame, which are 83 MB for a day at 60 per second."""

    times: NDArray[np.float64]
    """Seconds from the first frame."""
    borders: NDArray[np.uint16]
    """(frames, 4) black lines at the edges at SCAN_LINES lines: above, below, left, right."""
    cuts: list[int]
    """First frames of new shots."""
    dissolves: list[tuple[int, int]] = field(default_factory=list)
    """First and end frames of passages in which one shot fades into another."""


@dataclass
class Piece:
    """A clip in the making: frames first .. end - 1 of the raw video."""

    first: int
    end: int
    reason: str = ""
    """Why it is dropped; empty while it is kept."""
    detail: str = ""
    value: float | None = None
    bound: float | None = None
    crop: Crop | None = None
    """What is left without black borders; None for all of it."""
    row: dict[str, Any] = field(default_factory=dict)
    """Columns of the catalogue: scores, and what the written file decides."""

    @property
    def kept(self) -> bool:
        """Nothing has dropped it yet."""
        return not self.reason

    def drop(self, reason: str, detail: str, value: float, bound: float | None) -> None:
        """Drop it; the first reason stays."""
        if self.kept:
            self.reason, self.detail, self.value, self.bound = reason, detail, value, bound


@dataclass
class Draft:
    """One raw video on its way through the stages."""

    path: Path
    content: str
    """Hash of the file's bytes."""
    out: Path
    """Folder for clip files."""
    progress: Callable[[float], None]
    """Told the share of the work that is done."""
    info: VideoInfo | None = None
    scan: Scan | None = None
    pieces: list[Piece] = field(default_factory=list)

    @property
    def is_picture(self) -> bool:
        """Whether the file is a picture: a clip of one frame, whatever lengths and rates are asked for."""
        return self.path.suffix.lower() in PICTURES

    def header(self) -> VideoInfo:
        """What `probe` found; to be read after it only."""
        assert self.info is not None
        return self.info

    def measured(self) -> Scan:
        """What `shots` found; to be read after it only."""
        assert self.scan is not None
        return self.scan

    def seconds(self, piece: Piece) -> tuple[float, float]:
        """Start and end of a piece in the raw video."""
        times = self.measured().times
        frame = 1 / float(self.header().fps)
        end = float(times[piece.end]) if piece.end < len(times) else float(times[-1]) + frame
        return float(times[piece.first]), end
