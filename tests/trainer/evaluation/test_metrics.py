"""Measures against scikit-image and against numbers computed by hand."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from videotrain_trainer.evaluation.metrics import averaged, compared, described, psnr, ssim

pytestmark = pytest.mark.numeric

EPS = float(np.finfo(np.float32).eps)


def clip(seed, frames=3, height=24, width=33):
    draw = np.random.default_rng(seed)
    smooth = np.linspace(0, 200, width)[None, None, :, None] + draw.normal(0, 20, (frames, height, width, 3))
    return smooth.clip(0, 255).astype(np.uint8)


def noisy(video, spread, seed=9):
    noise = np.random.default_rng(seed).normal(0, spread, video.shape)
    return (video + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("spread", [2, 15, 60])
def test_psnr_is_that_of_scikit_image(spread):
    first = clip(1)
    second = noisy(first, spread)
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(first, second, strict=True)])
    assert psnr(first, second) == pytest.approx(expected, rel=1e-12)  # both in float64, means of some 2,000 squares


@pytest.mark.parametrize("spread", [2, 15, 60])
def test_ssim_is_that_of_scikit_image(spread):
    first = clip(1, frames=18)
    second = noisy(first, spread)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = np.mean(
        [structural_similarity(a, b, channel_axis=2, **options) for a, b in zip(first, second, strict=True)]
    )
    # Both in float64, but variances are differences of squares of up to 255, which takes four of sixteen digits.
    assert ssim(first, second) == pytest.approx(expected, rel=1e-11)


def test_equal_videos_are_best_and_a_flat_error_gives_the_ratio_by_hand():
    first = clip(2)
    assert compared(first, first) == {"psnr": 100.0, "ssim": pytest.approx(1.0)}
    flat = np.full((2, 16, 16, 3), 100, dtype=np.uint8)
    assert psnr(flat, flat + 5) == pytest.approx(20 * np.log10(255 / 5))


def test_flicker_motion_and_sharpness_are_those_computed_by_hand():
    grey = np.zeros((5, 16, 16, 3), dtype=np.uint8)
    grey[1::2] = 40  # jumps to and fro by 40
    found = described(grey)
    assert found["flicker"] == pytest.approx(40, rel=4 * EPS)  # a grey of three weighed colours, rounded thrice
    assert found["motion"] == pytest.approx(40, rel=4 * EPS)
    assert found["sharpness"] == pytest.approx(0.0, abs=(8 * 255 * EPS) ** 2)  # a variance of roundings
    rising = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 10
    assert described(rising)["flicker"] == pytest.approx(0.0, abs=8 * 40 * EPS)  # of greys up to 40
    assert described(rising)["motion"] == pytest.approx(10, rel=16 * EPS)  # differences of greys up to 40
    edges = grey.copy()
    edges[:, :, ::2] = 255
    assert described(edges)["sharpness"] > 1000


def test_a_mean_is_taken_of_every_column():
    assert averaged([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]) == {"a": 2.0, "b": 3.0}
    assert averaged([]) == {}
