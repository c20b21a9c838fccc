"""Every engine beside a single process without one: gradients, weights and moments.

The small model's five micro-batches do not divide evenly among two or three ranks, nor its rows.
"""

from __future__ import annotations

import os

import pytest
import torch
from support.engine_worlds import distance, distance_of_all, hand_over, in_world, plain, train_each

STEPS, MICRO_BATCHES = 3, 5
ROUNDING = 1e-5
"""Relative: float32 sums in another order lose about one digit of the seven."""
WHOLE = os.environ.get("VIDEOTRAIN_ENGINES") == "all"
ALL = ["zero0", "zero1", "zero2", "zero3", "offload1", "offload2", "offload3", "fsdp2", "fsdp2-offload"]
ENGINES = ALL if WHOLE else ["zero0", "zero2", "zero3", "offload2", "fsdp2", "fsdp2-offload"]
SUMS = {"zero1", "zero2", "offload1", "offload2"}
"""Those whose bf16 gradients are bit by bit those of one process: they neither average nor come between blocks."""

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("size", [1, 2, 3, 4] if WHOLE else [3])
def test_every_engine_learns_in_float32_what_one_process_learns(tmp_path, size):
    expected = plain(MICRO_BATCHES, STEPS)
    found = in_world(tmp_path, size, train_each, ENGINES, "fp32", MICRO_BATCHES, STEPS)
    for name in ENGINES:
        assert found[0][name].norms == pytest.approx(expected.norms, rel=ROUNDING), name
        for quantity, whole in expected.state.items():
            assert distance(found[0][name].state[quantity], whole) < ROUNDING, (name, quantity)
        assert [rank[name].norms for rank in found] == [found[0][name].norms] * size, name


@pytest.mark.parametrize("size", [1, 2, 3, 4] if WHOLE else [3])
def test_every_engine_adds_bf16_gradients_in_float32(tmp_path, size):
    exact, expected = plain(MICRO_BATCHES, STEPS), plain(MICRO_BATCHES, STEPS, "bf16")
    engines = [name for name in ENGINES if name != "zero0"]
    found = in_world(tmp_path, size, train_each, engines, "bf16", MICRO_BATCHES, STEPS)
    for name in engines:
        for quantity, whole in expected.state.items():
            state = found[0][name].state[quantity]
            if name in SUMS:
                assert distance(state, whole) < ROUNDING, (name, quantity)
                continue
            # The others add what comes out of a block before they add it to what comes out of the rest: other bf16
            # roundings, not more of them. Twice, since one process's are a draw and no bound.
            bound = 2 * distance_of_all(whole, exact.state[quantity])
            assert distance_of_all(state, exact.state[quantity]) < bound, (name, quantity)


@pytest.mark.parametrize(
    ("before", "after"),
    [(name, ENGINES) for name in ENGINES] if WHOLE else [("zero2", ["fsdp2", "zero3"]), ("fsdp2", ["zero0", "zero2"])],
)
def test_an_engine_goes_on_from_the_state_of_another(tmp_path, before, after):
    first = in_world(tmp_path, 2, hand_over, before, after, "fp32")[0]
    for name in after:
        held, result = first[name]
        for quantity, whole in first["given"].items():
            assert all(torch.equal(held[quantity][parameter], value) for parameter, value in whole.items()), name
            assert distance(result.state[quantity], first["went on"].state[quantity]) < ROUNDING, (name, quantity)
        assert result.norms == pytest.approx(first["went on"].norms, rel=ROUNDING)
