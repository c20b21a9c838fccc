from __future__ import annotations

import pytest

from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.training.order_check import RankSteps, order_lines
from videotrain_trainer.training.step import MicroBatchIds

PLAN = OrderPlan((OrderBucket("b", 6, 2),), seed=1, micro_batches=2)


class Numbered(TrainingSet):
    """Samples that are named by their place."""

    def uid(self, bucket, index):
        return f"u{index}"


DATA = Numbered(uri="file:///none", plan=PLAN, degrees=(1,))


@pytest.fixture
def steps():
    state = PLAN.start()
    return [PLAN.step(state), PLAN.step(PLAN.advance(state))]


def planned(order, micro_batch):
    return MicroBatchIds(micro_batch, [f"u{index}" for index in order.micro_batches[micro_batch]])


def test_lines_hold_the_ids_in_micro_batch_order_whichever_rank_had_them(steps):
    ranks = [RankSteps([[planned(order, micro_batch)] for order in steps], frozenset()) for micro_batch in (1, 0)]
    lines = order_lines(DATA, steps, ranks)
    assert [line.step for line in lines] == [1, 2]
    assert [line.ids for line in lines] == [
        [f"u{i}" for micro_batch in order.micro_batches for i in micro_batch] for order in steps
    ]


def test_a_sample_that_was_not_planned_is_refused(steps):
    wrong = MicroBatchIds(0, list(reversed(planned(steps[0], 0).ids)))
    with pytest.raises(TrainerError, match="step 1, micro-batch 0: trained on sample"):
        order_lines(DATA, steps[:1], [RankSteps([[wrong, planned(steps[0], 1)]], frozenset())])


def test_a_micro_batch_that_nobody_or_two_ranks_ran_is_refused(steps):
    order = steps[0]
    for micro_batches in ([0], [0, 0, 1]):
        rank = RankSteps([[planned(order, micro_batch) for micro_batch in micro_batches]], frozenset())
        with pytest.raises(TrainerError, match="instead of each one once"):
            order_lines(DATA, [order], [rank])


def test_a_stand_in_is_accepted_only_for_a_damaged_sample(steps):
    order = steps[0]
    damaged, kept = planned(order, 0).ids
    stand_in = f"u{PLAN.spare(0, order.micro_batches[0][0], order.positions[0][0], 1)}"
    trained = [[MicroBatchIds(0, [stand_in, kept]), planned(order, 1)]]
    assert order_lines(DATA, [order], [RankSteps(trained, frozenset({damaged}))])[0].ids[0] == stand_in
    if stand_in != damaged:
        with pytest.raises(TrainerError, match="trained on sample"):
            order_lines(DATA, [order], [RankSteps(trained, frozenset())])
