"""Area of written text, found and read by PP-OCRv4; needs `rapidocr-onnxruntime`, whose wheel has the weights."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import cv2
import numpy as np

from videotrain_trainer.curation.scores.interface import ClipFrame, Columns
from videotrain_trainer.errors import ConfigError

FRAMES = 3
LINES = 480
"""Height of what the reader is given. It enlarges that to 736 lines of its own, 2.4 times the work; kept at 480, it
takes texture of small videos for letters (three of a hundred painted ones)."""
CONFIDENCE = 0.7
"""Of the reader; what it believes less is taken for texture."""

LETTERS = 2
"""Fewest of a text: the reader takes round shapes of any size for a single digit, with confidences up to 0.84."""


class TextArea:
    """Share of the picture that boxes of text cover, mean of three spread frames."""

    def __init__(self) -> None:
        self._reader = text_reader()
        self._areas: list[float] = []

    def see(self, frame: ClipFrame) -> None:
        """The next frame."""
        if frame.among(FRAMES):
            height, width = frame.rgb.shape[:2]
            size = (max(1, round(width * LINES / height)), LINES)
            picture = cv2.resize(frame.rgb, size, interpolation=cv2.INTER_AREA)
            found, _ = self._reader(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), use_cls=False)
            boxes = [
                np.asarray(box, np.float32)
                for box, read, sure in found or []
                if float(sure) > CONFIDENCE and len(read.strip()) >= LETTERS
            ]
            self._areas.append(sum(float(cv2.contourArea(box)) for box in boxes) / (size[0] * size[1]))

    def columns(self) -> Columns:
        """What was measured."""
        return {"text": float(np.mean(self._areas))}


def refuse_missing() -> None:
    """Raises ConfigError if the reader is not installed here."""
    if importlib.util.find_spec("rapidocr_onnxruntime") is None:
        raise ConfigError(
            "curate.textArea: rapidocr-onnxruntime is not installed here; install videotrain-trainer[curate], and "
            "rapidocr-onnxruntime with --no-deps"
        )


@cache
def text_reader() -> Any:
    """The reader, loaded once per process."""
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
