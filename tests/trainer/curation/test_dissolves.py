"""Dissolves are found by how the variance falls, also between pictures that resemble each other."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from videotrain_trainer.curation.dissolves import Dissolves

FRAMES, LENGTH = 60, 20
BEGIN = (FRAMES - LENGTH) // 2


def canvas(seed: int) -> np.ndarray:
    """(90, 160) of variance 1, smooth."""
    coarse = np.random.default_rng(seed).normal(size=(9, 16)).astype(np.float32)
    picture = cv2.resize(coarse, (160, 90), interpolation=cv2.INTER_CUBIC)
    return (picture - picture.mean()) / picture.std()


def spans(shares: np.ndarray, alike: float) -> list[tuple[int, int]]:
    """Found where a picture becomes another one that has this correlation with it."""
    first, noise = canvas(1), canvas(2)
    noise -= first * (first * noise).mean()
    second = alike * first + np.sqrt(1 - alike**2) * noise / noise.std()
    dissolves = Dissolves()
    for share in shares:
        picture = 128 + 30 * ((1 - share) * first + share * second)
        dissolves.see(np.clip(picture, 0, 255).astype(np.uint8))
    return dissolves.spans()


@pytest.mark.parametrize("alike", [0.0, 0.2, 0.4])
def test_a_dissolve_is_found_where_it_is(alike):
    ((first, end),) = spans(np.clip((np.arange(FRAMES) - BEGIN) / LENGTH, 0, 1), alike)
    assert first == pytest.approx(BEGIN, abs=5)
    assert end == pytest.approx(BEGIN + LENGTH, abs=5)


def test_neither_a_cut_nor_one_shot_nor_a_look_alike_is_a_dissolve():
    assert spans(np.repeat([0.0, 1.0], FRAMES // 2), 0.0) == []
    assert spans(np.zeros(FRAMES), 0.0) == []
    assert spans(np.clip((np.arange(FRAMES) - BEGIN) / LENGTH, 0, 1), 0.8) == []
