from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.checkpoint.retention import steps_to_delete

steps = st.sets(st.integers(1, 40), max_size=12)


def test_the_newest_and_the_marked_checkpoints_stay():
    deleted = steps_to_delete([10, 20, 30, 40, 50], [35, 60], keep_last=2, keep_every=20)
    assert deleted == [10, 30, 35]


@given(steps, steps, st.integers(1, 5), st.none() | st.integers(1, 10))
def test_retention_keeps_what_it_must_and_nothing_half_written_is_touched(complete, incomplete, last, every):
    incomplete -= complete
    deleted = set(steps_to_delete(complete, incomplete, keep_last=last, keep_every=every))
    kept = complete - deleted
    assert deleted <= complete | incomplete
    assert set(sorted(complete)[-last:]) <= kept
    assert all(every is None or step % every for step in deleted & complete)
    assert all(not complete or step < max(complete) for step in deleted)
    assert complete == set() or max(complete) in kept


def test_nothing_is_deleted_while_nothing_is_complete():
    assert steps_to_delete([], [10, 20], keep_last=1) == []


def test_keeping_none_is_refused():
    with pytest.raises(ValueError, match="keep_last: 0"):
        steps_to_delete([10], [], keep_last=0)
