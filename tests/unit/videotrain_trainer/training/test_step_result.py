from __future__ import annotations

import pytest
import torch

from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.training.step_result import RankStep, check_groups, samples_hash

PLAN = OrderPlan((OrderBucket("b", 6, 1),), seed=1, micro_batches=2)
ORDER = PLAN.step(PLAN.start())


def table(*uids):
    zeros = RankStep(*[0.0] * len(RankStep._fields))
    return torch.tensor([zeros._replace(samples_hash=samples_hash(told)) for told in uids], dtype=torch.float64)


def test_ranks_that_share_micro_batches_must_have_had_the_same_samples():
    same = table(["a", "b"], ["a", "b"], ["c"], ["c"])
    check_groups(same, 2, ORDER)
    check_groups(same, 1, ORDER)
    with pytest.raises(TrainerError, match=r"step 1 \(bucket b\): ranks 0 to 3 share"):
        check_groups(same, 4, ORDER)
    with pytest.raises(TrainerError, match="ranks 2 to 3 share their micro-batches"):
        check_groups(table(["a"], ["a"], ["c"], ["d"]), 2, ORDER)


def test_the_hash_of_samples_depends_on_all_of_them_and_their_order_and_is_exact():
    told = [["a", "b"], ["b", "a"], ["a"], ["ab"], []]
    hashes = [samples_hash(uids) for uids in told]
    assert len(set(hashes)) == len(told)
    assert all(found == int(found) < 2**48 for found in hashes)
