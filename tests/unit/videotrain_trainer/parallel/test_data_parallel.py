from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.stages import ParallelLayout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.parallel.data_parallel import check_layout, loss_scale, slots_of


@given(st.integers(1, 9), st.integers(1, 40))
def test_groups_share_all_slots_as_evenly_as_they_can(groups, slots):
    shares = [slots_of(group, groups, slots) for group in range(groups)]
    assert sorted(slot for share in shares for slot in share) == list(range(slots))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 9), st.integers(1, 40), st.data())
def test_the_engines_average_over_ranks_is_the_mean_over_slots(groups, slots, data):
    gradients = data.draw(st.lists(st.floats(-1, 1), min_size=slots, max_size=slots))
    scale = loss_scale(groups, slots)
    sums = [sum(gradients[slot] * scale for slot in slots_of(group, groups, slots)) for group in range(groups)]
    assert sum(sums) / groups == pytest.approx(sum(gradients) / slots, abs=1e-12)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (ParallelLayout(slots_per_step=3), "slotsPerStep: 3 slots cannot occupy 4"),
        (ParallelLayout(slots_per_step=6, zero_stage=2), "needs slotsPerStep to be a multiple of the 4"),
    ],
)
def test_a_layout_that_does_not_fit_the_world_is_refused(layout, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(layout, 4)
