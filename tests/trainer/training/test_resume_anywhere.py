"""A stage that every generation continues with another engine, degree of context parallelism and world."""

from __future__ import annotations

import os

import pytest
from support.training_worlds import (
    LEARNING_RATE,
    Plan,
    run_world,
    train_config,
)
from support.world_ends import assert_same_training

from videotrain_api.resource.stages import ParallelLayout

pytestmark = pytest.mark.numeric

ROUNDING = 5e-3 * LEARNING_RATE
"""Shared clips add the same numbers in another order, and Adam divides by gradients that are almost 0: 5e-4 was seen,
and another CPU rounds otherwise. A gradient that is lost or counted twice moves weights by about the whole rate."""
FSDP, OFFLOAD = {"engine": "fsdp2"}, {"zero_stage": 2, "offload": "optimizer"}
ZERO = [{"zero_stage": stage} for stage in range(4)]
Generation = tuple[dict[str, object], int, int]
"""Engine, degree, and worker processes."""
SHORT: list[list[Generation]] = [[(FSDP, 2, 2), (ZERO[3], 1, 3), (ZERO[2], 4, 4), (ZERO[0], 1, 1)]]
LONG: list[list[Generation]] = [
    [(ZERO[0], 4, 4), (FSDP, 1, 3), (ZERO[1], 2, 4), (OFFLOAD, 1, 2)],
    [(ZERO[3], 2, 4), (ZERO[0], 1, 3), (FSDP, 4, 4), (ZERO[2], 2, 2)],
    [(OFFLOAD, 2, 4), (ZERO[2], 1, 3), (ZERO[3], 4, 4), (FSDP, 1, 1)],
    [(ZERO[1], 1, 3), (FSDP, 2, 4), (ZERO[2], 1, 1), (ZERO[3], 1, 2)],
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents):
    """One process, never disturbed: the yardstick."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_world(folder, train_config(folder, latents), 1).outcomes == ["completed"]
    return folder


@pytest.mark.parametrize("chain", SHORT + LONG if os.environ.get("VIDEOTRAIN_ENGINES") == "all" else SHORT)
def test_every_generation_continues_what_another_engine_and_layout_saved(tmp_path, latents, alone, chain):
    for number, (engine, degree, size) in enumerate(chain, start=1):
        layout = ParallelLayout(micro_batches_per_step=4, context_parallel=degree, **engine)
        last = number == len(chain)
        plan = Plan(generation=number, drain_during=None if last else 2 * number)
        result = run_world(tmp_path, train_config(tmp_path, latents, parallel=layout), size, plan)
        assert result.outcomes == ["completed" if last else "drained"] * size, (number, result.outcomes)
        assert result.started.resumed_step == 2 * (number - 1)
    assert_same_training(tmp_path, alone, ROUNDING)
