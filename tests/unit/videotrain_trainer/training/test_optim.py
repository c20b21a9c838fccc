from __future__ import annotations

import pytest

from videotrain_api.resource.stages import LearningRatePiece, Optimizer
from videotrain_trainer.training.optim import learning_rate


def test_the_rate_rises_from_zero_and_then_follows_its_pieces():
    spec = Optimizer(
        learning_rate=[LearningRatePiece(value=5e-5, until_step=100), LearningRatePiece(value=3e-5)], warmup_steps=10
    )
    assert learning_rate(spec, 1) == pytest.approx(5e-6)
    assert learning_rate(spec, 10) == learning_rate(spec, 100) == 5e-5
    assert learning_rate(spec, 101) == learning_rate(spec, 10**6) == 3e-5


def test_the_last_piece_goes_on_beyond_its_end():
    spec = Optimizer(learning_rate=[LearningRatePiece(value=1e-3, until_step=5)])
    assert learning_rate(spec, 6) == 1e-3
