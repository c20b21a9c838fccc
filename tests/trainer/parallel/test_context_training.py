"""Worlds that share sequences, from a stage's start to its weights: nothing of what is learned depends on it.

Bounds are those of worlds of different size, which add the same float32 numbers in another order.
"""

from __future__ import annotations

import pytest
from support.training_worlds import (
    LEARNING_RATE,
    Plan,
    commit_of,
    difference,
    final_weights,
    run_world,
    train_config,
)
from support.world_ends import assert_same_training

from videotrain_api.records import ValidationRecord
from videotrain_api.resource.stages import Bucket, ParallelLayout, Validation

pytestmark = pytest.mark.numeric

ROUNDING = 5e-3 * LEARNING_RATE
"""Shared clips add the same numbers in another order, and Adam divides by gradients that are almost 0: 5e-4 was seen,
and another CPU rounds otherwise. A gradient that is lost or counted twice moves weights by about the whole rate."""
LOSS = 5e-6
HELD_OUT = Validation(every_steps=4, share=0.3, times=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents):
    """One process with whole sequences, never disturbed: the yardstick."""
    folder = tmp_path_factory.mktemp("alone")
    result = run_world(folder, config(folder, latents), 1)
    assert result.outcomes == ["completed"], result.outcomes
    return folder, result


def config(folder, latents, short=1, long=1, cut=1, **layout):
    """A stage whose rows have these degrees; `cut` has so many more micro-batches of the short row, so much smaller."""
    rows = [
        Bucket(resolution="64px", frames=8, batch_size=2 // cut, micro_batches=4 * cut, context_parallel=short),
        Bucket(resolution="64px", frames=16, batch_size=1, context_parallel=long),
    ]
    parallel = ParallelLayout(micro_batches_per_step=4, **layout)
    return train_config(folder, latents, buckets=rows, parallel=parallel, validation=HELD_OUT)


def assert_same(folder, result, alone):
    """Order, work, losses and weights of a stage that ran without a stop."""
    whole, whole_result = alone
    assert commit_of(folder, 8).order_sha256 == commit_of(whole, 8).order_sha256
    assert difference(final_weights(folder), final_weights(whole)) < ROUNDING
    for name in ("samples", "tokens", "model_flops", "useful_flops", "bucket"):
        expected = [getattr(step, name) for step in whole_result.steps]
        assert [getattr(step, name) for step in result.steps] == expected, name
    losses = [step.loss for step in whole_result.steps]
    assert [step.loss for step in result.steps] == pytest.approx(losses, rel=LOSS)
    for found, expected in zip(result.of(ValidationRecord), whole_result.of(ValidationRecord), strict=True):
        assert found.samples == expected.samples
        assert found.loss == pytest.approx(expected.loss, rel=LOSS)
        assert found.bucket_losses == pytest.approx(expected.bucket_losses, rel=LOSS)


def test_rows_of_different_degrees_learn_what_whole_sequences_learn(tmp_path, latents, alone):
    result = run_world(tmp_path, config(tmp_path, latents, short=2, long=4), 4)
    assert result.outcomes == ["completed"] * 4, result.outcomes
    assert_same(tmp_path, result, alone)


def test_a_stage_killed_at_one_degree_goes_on_at_others_and_no_sample_is_lost_or_repeated(tmp_path, latents, alone):
    killed = run_world(tmp_path, config(tmp_path, latents, short=4, long=4), 4, Plan(kill_after=5))
    assert killed.codes[-1] == -9
    middle = run_world(tmp_path, config(tmp_path, latents, short=2, long=2), 2, Plan(generation=2, drain_during=6))
    assert (middle.outcomes, middle.started.resumed_step) == (["drained"] * 2, 3), middle.outcomes
    last = run_world(tmp_path, config(tmp_path, latents, cut=2), 1, Plan(generation=3))
    assert last.outcomes == ["completed"], last.outcomes
    assert_same_training(tmp_path, alone[0], ROUNDING)


def test_fully_sharded_worlds_share_sequences_too(tmp_path, latents, alone):
    result = run_world(tmp_path, config(tmp_path, latents, short=2, engine="fsdp2"), 2)
    assert result.outcomes == ["completed"] * 2, result.outcomes
    assert_same(tmp_path, result, alone)
