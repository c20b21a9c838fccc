"""One table of all ranks becomes one account of a step."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import torch

from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan
from videotrain_trainer.errors import Diverged, TrainerError
from videotrain_trainer.training.step_result import (
    RankStep,
    Wishes,
    check_finite,
    check_groups,
    samples_hash,
    straggler,
    world_result,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = OrderPlan((OrderBucket("64px/8f/1:1", 6, 2, micro_batches=3),), seed=1, micro_batches=3)
ORDER = PLAN.step(PLAN.start())


def row(**changes):
    whole = dict.fromkeys(RankStep._fields, 0.0)
    return whole | {"loss": 1.0, "gradient_norm": 2.0, "samples": 2, "micro_batches": 1, "forward": 100} | changes


def table(*rows):
    return torch.tensor([RankStep(**each) for each in rows], dtype=torch.float64)


def test_work_is_added_up_times_are_means_and_waits_are_the_longest():
    rows = [
        row(backward=300, communication=10, optimizer=4, data=7, memory=5e9, tokens=10, hardware_flops=40.0),
        row(backward=500, communication=30, optimizer=8, data=9, memory=8e9, tokens=20, hardware_flops=60.0, loss=3.5),
    ]
    result = world_result(table(*rows), ORDER, NOW, 1e-3)
    told = result.measured
    assert told["loss"] == pytest.approx(1.5)  # of three micro-batches
    assert (result.work.samples, result.work.tokens, result.work.hardware_flops) == (4, 30, 100.0)
    assert (told["forward_us"], told["backward_us"], told["communication_us"], told["optimizer_us"]) == (
        100,
        400,
        20,
        6,
    )
    assert (told["data_stall_us"], told["memory_bytes"], told["gradient_norm"]) == (9, 8e9, 2.0)
    assert told["world_spread"] == pytest.approx(200 / 500)
    assert (told["slowest_rank"], told["bucket"], result.finished_at) == (1, ORDER.bucket, NOW)


def test_what_one_rank_asks_for_the_world_does():
    assert world_result(table(row(), row()), ORDER, NOW, 0.1).agreed == Wishes()
    assert world_result(table(row(), row(drain=1)), ORDER, NOW, 0.1).agreed == Wishes(drain=True)
    assert world_result(table(row(save=1), row()), ORDER, NOW, 0.1).agreed == Wishes(save=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"loss": float("nan")}, "the loss is nan; lower optimizer.learningRate"),
        ({"gradient_norm": float("inf")}, "the gradient norm is inf; lower optimizer.learningRate"),
        ({"critic_norm": float("nan")}, "discriminator's gradient norm is nan; lower autoencoder.adversarial"),
    ],
)
def test_a_value_of_any_rank_that_is_not_finite_ends_the_step_on_all(change, what):
    check_finite(table(row(), row()), ORDER)
    for rows in ([row(**change), row()], [row(), row(**change)]):
        with pytest.raises(Diverged, match=what):
            check_finite(table(*rows), ORDER)


def test_the_straggler_is_slowest_at_one_micro_batch_however_many_it_has():
    # Rank 0 has two micro-batches of 100 each, rank 3 none.
    found = straggler(torch.tensor([200.0, 150.0, 100.0, 0.0]), torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert found == (1, pytest.approx(0.5))
    assert straggler(torch.tensor([0.0]), torch.tensor([0.0])) == (None, None)
    assert straggler(torch.tensor([80.0]), torch.tensor([1.0])) == (0, 0.0)


GROUPS = OrderPlan((OrderBucket("b", 6, 1),), seed=1, micro_batches=2)
GROUPS_ORDER = GROUPS.step(GROUPS.start())


def hashes_of(*uids):
    zeros = RankStep(*[0.0] * len(RankStep._fields))
    return torch.tensor([zeros._replace(samples_hash=samples_hash(told)) for told in uids], dtype=torch.float64)


def test_ranks_that_share_micro_batches_must_have_had_the_same_samples():
    same = hashes_of(["a", "b"], ["a", "b"], ["c"], ["c"])
    check_groups(same, 2, GROUPS_ORDER)
    check_groups(same, 1, GROUPS_ORDER)
    with pytest.raises(TrainerError, match=r"step 1 \(bucket b\): ranks 0 to 3 share"):
        check_groups(same, 4, GROUPS_ORDER)
    with pytest.raises(TrainerError, match="ranks 2 to 3 share their micro-batches"):
        check_groups(hashes_of(["a"], ["a"], ["c"], ["d"]), 2, GROUPS_ORDER)


def test_the_hash_of_samples_depends_on_all_of_them_and_their_order_and_is_exact():
    told = [["a", "b"], ["b", "a"], ["a"], ["ab"], []]
    hashes = [samples_hash(uids) for uids in told]
    assert len(set(hashes)) == len(told)
    assert all(found == int(found) < 2**48 for found in hashes)
