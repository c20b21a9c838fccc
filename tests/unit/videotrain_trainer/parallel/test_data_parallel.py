from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.parallel.data_parallel import loss_scale, micro_batches_of

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
