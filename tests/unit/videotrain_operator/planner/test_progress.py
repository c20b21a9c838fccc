"""What several members tell of a generation, put together."""

from __future__ import annotations

from support.planner_builders import at, progress

from videotrain_operator.planner.progress import Report, merge

VICTIM = "local rank 0\n    all_reduce (distributed_c10d.py:2990)\n"
STUCK = "local rank 0\n    all_reduce (distributed_c10d.py:2990)\n\nlocal rank 1\n    read (loader.py:40)\n"


def test_of_a_hang_the_stacks_of_the_member_are_kept_for_which_the_others_wait() -> None:
    """It is rarely the one that is ahead."""
    ahead, behind = progress(1, 41), progress(1, 40)
    reports = [
        Report(pod="demo-w0", at=at(50), facts=ahead.model_copy(update={"stacks": VICTIM})),
        Report(pod="demo-w1", at=at(50), facts=behind.model_copy(update={"stacks": STUCK})),
    ]
    first = merge(None, reports[:1], 2)
    assert first is not None and first.stacks == VICTIM
    both = merge(first, reports, 2)
    assert both is not None and (both.step, both.stacks) == (41, STUCK)
