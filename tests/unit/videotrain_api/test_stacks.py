"""Who waits for others in a hang, and who is waited for."""

from __future__ import annotations

import pytest

from videotrain_api.stacks import MOST_TOLD, calls_of, joined, stuck_ranks, waiting_ranks

VICTIM = "Thread 1 (idle)\n    all_reduce (torch/distributed/distributed_c10d.py:2990)\n    step (engine.py:10)\n"
STUCK = "Thread 1 (active)\n    read (data/loader.py:40)\n    step (engine.py:9)\n"
UNREAD = "no stacks of process 7: permission denied\n"


def test_who_stands_in_no_collective_comes_first_and_is_named() -> None:
    text = joined({0: VICTIM, 1: VICTIM, 2: STUCK, 3: UNREAD}, 10_000)
    assert stuck_ranks(text) == [2, 3]
    assert text.startswith("local rank 2\n") and text.index("local rank 3") < text.index("local rank 0")


def test_a_long_text_is_cut_behind_those_that_matter() -> None:
    text = joined({0: VICTIM * 50, 1: STUCK}, 200)
    assert len(text) <= 200 and STUCK in text
    assert (stuck_ranks(text), waiting_ranks(text)) == ([1], [0])


def test_no_rank_that_waits_is_named_since_its_stack_was_cut() -> None:
    """Eight ranks of a pod have longer stacks than an agent tells."""
    deep = VICTIM + "    call (model/block.py:1)\n" * 60
    text = joined({0: STUCK * 30} | dict.fromkeys(range(1, 8), deep), MOST_TOLD)
    assert len(text) <= MOST_TOLD
    assert (stuck_ranks(text), waiting_ranks(text)) == ([0], list(range(1, 8)))


@pytest.mark.parametrize(
    "stack",
    [
        'Thread 7 (idle): "MainThread"\n    read (/usr/lib/a/data/loader.py:40)\n    step (engine.py:9)\n',
        'Thread 0x1 (most recent call first):\n  File "/tmp/x.py", line 1 in wait\n\nCurrent thread 0x2 (most recent '
        'call first):\n  File "/usr/lib/a/data/loader.py", line 40 in read\n  File "engine.py", line 9 in step\n',
    ],
    ids=["py-spy", "faulthandler"],
)
def test_what_a_rank_does_is_told_in_a_line(stack: str) -> None:
    assert calls_of(joined({3: stack, 4: VICTIM}, 10_000), 3) == "read (data/loader.py:40) < step (engine.py:9)"
    assert calls_of(joined({3: UNREAD}, 10_000), 3) == UNREAD.strip()


def test_where_all_wait_nobody_is_named() -> None:
    assert stuck_ranks(joined({0: VICTIM, 1: VICTIM}, 10_000)) == []
    assert stuck_ranks("") == []


def main_thread(*frames: str, others: str = "") -> str:
    head = 'Process 7: python\nPython v3.11.7\n\nThread 7 (idle): "MainThread"\n'
    return head + "".join(f"    {frame}\n" for frame in frames) + f'Thread 8 (idle): "pin"\n{others}'


@pytest.mark.parametrize(
    ("frame", "waits"),
    [
        ("gather (torch/distributed/distributed_c10d.py:4000)", True),
        ("gather_object (torch/distributed/distributed_c10d.py:3000)", True),
        ("recv (torch/distributed/distributed_c10d.py:2500)", True),
        ("synchronize (torch/cuda/__init__.py:1000)", True),
        ("Event.synchronize (torch/cuda/streams.py:230)", True),
        ("foreach_all_gather (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py:20)", True),
        ("broadcast_object_list (torch/distributed/distributed_c10d.py:3600)", True),
        ("allreduce_bucket (deepspeed/runtime/zero/stage_1_and_2.py:1500)", True),
        ("Connection.recv (multiprocessing/connection.py:250)", False),
        ("broadcast_to (numpy/lib/_stride_tricks_impl.py:410)", False),
        ("read (data/gather.py:40)", False),
        ("get (torch/all_reduce/queue.py:40)", False),
    ],
)
def test_frames_of_the_main_thread_tell(frame: str, waits: bool) -> None:
    stack = main_thread(frame, "step (engine.py:10)")
    assert stuck_ranks(joined({0: stack}, 10_000)) == ([] if waits else [0])


def test_other_threads_of_a_rank_do_not_count() -> None:
    stack = main_thread("read (data/loader.py:40)", others="    barrier (torch/distributed/distributed_c10d.py:1)\n")
    assert stuck_ranks(joined({0: stack, 1: VICTIM}, 10_000)) == [0]


def test_stacks_of_the_workers_own_handler_are_read() -> None:
    other = 'Thread 0x00007f01 (most recent call first):\n  File "/x/torch/distributed/c10d.py", line 1 in barrier\n\n'
    head = "Current thread 0x00007f02 (most recent call first):\n"
    stuck = f'{other}{head}  File "/app/loader.py", line 40 in read\n'
    victim = (
        f'{other}{head}  File "/x/torch/distributed/c10d.py", line 9 in gather\n  File "/app/a.py", line 1 in step\n'
    )
    assert stuck_ranks(joined({0: victim, 1: stuck}, 10_000)) == [1]
