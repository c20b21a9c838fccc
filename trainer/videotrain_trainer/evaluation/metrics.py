"""Measures of videos that need no weights; those of sampling's scorers are the same functions.

Videos are (T, H, W, 3) uint8 arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from videotrain_trainer.sampling.scorers import motion, sharpness, steadiness

Frames = NDArray[np.uint8]
PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
"""Gaussian window of SSIM, pixels."""
STABLE = ((0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2)
SMALLEST_SIDE = WINDOW
FRAMES_AT_ONCE = 16
BEST_PSNR = 100.0
"""Reported for equal pixels, whose ratio has no bound."""


def psnr(first: Frames, second: Frames) -> float:
    """Peak signal-to-noise ratio in dB: of each frame, averaged over the frames; 100 for a frame without any error."""
    errors = ((first.astype(np.float64) - second.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        ratios = 10 * np.log10(PEAK**2 / errors)
    return float(np.minimum(ratios, BEST_PSNR).mean())


def ssim(first: Frames, second: Frames) -> float:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window, per channel, mean over frames and positions.

    Only positions whose window lies inside of the picture count. Sides must be 11 pixels or more.
    """
    values = []
    for start in range(0, len(first), FRAMES_AT_ONCE):
        pair = [_planes(video[start : start + FRAMES_AT_ONCE]) for video in (first, second)]
        values += _ssim_of_frames(*pair).tolist()
    return float(np.mean(values))


def _planes(frames: Frames) -> Tensor:
    """(T, H, W, 3) to (T, 3, H, W), float64."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).double()


def _ssim_of_frames(first: Tensor, second: Tensor) -> Tensor:
    mean_a, mean_b = _blurred(first), _blurred(second)
    spread_a = _blurred(first * first) - mean_a**2
    spread_b = _blurred(second * second) - mean_b**2
    together = _blurred(first * second) - mean_a * mean_b
    light = (2 * mean_a * mean_b + STABLE[0]) / (mean_a**2 + mean_b**2 + STABLE[0])
    shape = (2 * together + STABLE[1]) / (spread_a + spread_b + STABLE[1])
    return (light * shape).mean(dim=(1, 2, 3))


def _blurred(planes: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(3, 1, -1)
    rows = F.conv2d(planes, weights[:, :, :, None], groups=3)
    return F.conv2d(rows, weights[:, :, None, :], groups=3)


def compared(first: Frames, second: Frames) -> dict[str, float]:
    """PSNR and SSIM of two videos of one size."""
    return {"psnr": psnr(first, second), "ssim": ssim(first, second)}


def described(video: Frames) -> dict[str, float]:
    """Flicker (grey levels by which a frame leaves the mean of its neighbours), motion (mean grey-level difference of
    neighbouring frames) and sharpness (variance of the Laplacian).
    """
    return {"flicker": -steadiness(video, ""), "motion": motion(video, ""), "sharpness": sharpness(video, "")}


def averaged(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every column."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
