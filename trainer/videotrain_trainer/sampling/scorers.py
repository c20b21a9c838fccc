"""What the best of several candidates is chosen by. The built-in scorers need no weights; others are imported by name.

Scaling at inference time: the same prompt is drawn with several seeds and the best one is kept. A scorer is any
callable that takes frames and prompt and gives a number, the higher the better.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.errors import ConfigError

Frames = NDArray[np.uint8]
"""(T, H, W, 3)."""


class Scorer(Protocol):
    """Rates a video: called with its frames and its prompt, it returns a score, higher for better."""

    def __call__(self, frames_THWC: Frames, prompt: str, /) -> float:
        """The higher the better."""


def steadiness(frames_THWC: Frames, _prompt: str, /) -> float:
    """Minus the flicker: how much a frame differs from the mean of its neighbours, in grey levels.

    Even motion and still scenes both have little of it; brightness that jumps to and fro has much.
    """
    grey = _grey(frames_THWC)
    if len(grey) < 3:
        return 0.0
    return -float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


def motion(frames_THWC: Frames, _prompt: str, /) -> float:
    """Mean absolute difference of neighbouring frames, in grey levels."""
    grey = _grey(frames_THWC)
    return float(np.abs(np.diff(grey, axis=0)).mean()) if len(grey) > 1 else 0.0


def sharpness(frames_THWC: Frames, _prompt: str, /) -> float:
    """Variance of the Laplacian over all frames."""
    grey = _grey(frames_THWC)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float((around - 4 * inner).var())


BUILT_IN: Mapping[str, Scorer] = {"steadiness": steadiness, "motion": motion, "sharpness": sharpness}


def load_scorer(name: str) -> Scorer:
    """A built-in scorer, or `package.module:attribute`.

    Raises:
        ConfigError: there is no such scorer, or it cannot be called.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(sorted(BUILT_IN))
        raise ConfigError(f"scorer: {name!r} is unknown; allowed: {known}, or package.module:attribute")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"scorer: {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"scorer: {name!r} is no function of (frames, prompt)")
    return found


def _grey(frames_THWC: Frames) -> NDArray[np.float32]:
    return frames_THWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
