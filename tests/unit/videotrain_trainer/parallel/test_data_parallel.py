from __future__ import annotations

import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.parallel.data_parallel import loss_scale, micro_batches_of, share_of

pytestmark = pytest.mark.numeric


@given(st.integers(1, 9), st.integers(1, 40))
def test_groups_share_all_micro_batches_as_evenly_as_they_can(groups, micro_batches):
    shares = [micro_batches_of(group, groups, micro_batches) for group in range(groups)]
    assert sorted(micro_batch for share in shares for micro_batch in share) == list(range(micro_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 9), st.integers(1, 40), st.data())
def test_the_engines_average_over_ranks_is_the_mean_over_micro_batches(groups, micro_batches, data):
    gradients = data.draw(st.lists(st.floats(-1, 1), min_size=micro_batches, max_size=micro_batches))
    scale = loss_scale(groups, micro_batches)
    sums = [
        sum(gradients[micro_batch] * scale for micro_batch in micro_batches_of(group, groups, micro_batches))
        for group in range(groups)
    ]
    # 40 float64 terms of size 1 or less, each rounded twice, in another order.
    assert sum(sums) / groups == pytest.approx(sum(gradients) / micro_batches, abs=2 * 40 * sys.float_info.epsilon)


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.integers(0, 20))
def test_the_ranks_of_a_group_run_the_same_and_one_speaks_for_them(degree, groups, more):
    size, micro_batches = degree * groups, groups + more
    shares = [share_of(rank, size, micro_batches, degree) for rank in range(size)]
    for group in range(groups):
        mine = shares[group * degree : (group + 1) * degree]
        assert [share.micro_batches for share in mine] == [micro_batches_of(group, groups, micro_batches)] * degree
        assert [share.leads for share in mine] == [True] + [False] * (degree - 1)
    counted = [number for share in shares if share.leads for number in share.micro_batches]
    assert sorted(counted) == list(range(micro_batches))
    # The engine's mean over the ranks, of losses that are alike within a group.
    mean = sum(share.scale * len(share.micro_batches) for share in shares) / size
    assert mean == pytest.approx(1, rel=micro_batches * sys.float_info.epsilon)


def test_where_passes_communicate_every_rank_runs_equally_many_and_each_micro_batch_counts_once():
    for groups, degree, micro_batches in product((1, 2, 3, 4), (1, 2), (4, 5, 7)):
        shares = [share_of(rank, groups * degree, micro_batches, degree) for rank in range(groups * degree)]
        turns = [list(share.turns(in_step=True)) for share in shares]
        assert {len(found) for found in turns} == {shares[0].most}
        assert all([turn.last for turn in found] == [False] * (len(found) - 1) + [True] for found in turns)
        counted = [turn.micro_batch for found in turns for turn in found if turn.scale]
        assert sorted(counted) == sorted(list(range(micro_batches)) * degree)
        alone = [turn.micro_batch for share in shares for turn in share.turns(in_step=False)]
        assert sorted(alone) == sorted(counted)
