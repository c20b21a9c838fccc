"""Who waits for others in a hang, and who is waited for."""

from __future__ import annotations

from videotrain_api.stacks import joined, stuck_ranks

VICTIM = "Thread 1 (idle)\n    all_reduce (torch/distributed/distributed_c10d.py:2990)\n    step (engine.py:10)\n"
STUCK = "Thread 1 (active)\n    read (data/loader.py:40)\n    step (engine.py:9)\n"
UNREAD = "no stacks of process 7: permission denied\n"


def test_who_stands_in_no_collective_comes_first_and_is_named() -> None:
    text = joined({0: VICTIM, 1: VICTIM, 2: STUCK, 3: UNREAD}, 10_000)
    assert stuck_ranks(text) == [2, 3]
    assert text.startswith("local rank 2\n") and text.index("local rank 3") < text.index("local rank 0")


def test_a_long_text_is_cut_behind_those_that_matter() -> None:
    text = joined({0: VICTIM * 50, 1: STUCK}, 200)
    assert len(text) == 200 and STUCK in text


def test_where_all_wait_nobody_is_named() -> None:
    assert stuck_ranks(joined({0: VICTIM, 1: VICTIM}, 10_000)) == []
    assert stuck_ranks("") == []
