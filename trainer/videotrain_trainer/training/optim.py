"""The learning rate: a pure function of the step."""

from __future__ import annotations

from videotrain_api.resource.stages import Optimizer


def learning_rate(spec: Optimizer, step: int) -> float:
    """Rate of a 1-based step: the piece that it lies in, times a linear warm-up from 0.

    Warm-up step k of n has k/n of the rate, so the first step after it has the whole.
    """
    pieces = spec.learning_rate
    value = next(
        (piece.value for piece in pieces if piece.until_step is None or step <= piece.until_step), pieces[-1].value
    )
    return value * min(1.0, step / spec.warmup_steps) if spec.warmup_steps else value
