"""Every engine beside a single process without one: gradients, weights, moments, what a step sends and holds.

The small model's five micro-batches do not divide evenly among two or three ranks, nor its rows.
"""

from __future__ import annotations

import os

import pytest
import torch
from support.engine_worlds import costs, distance, distance_of_all, hand_over, in_world, plain, train_each

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


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_world(tmp_path_factory.mktemp("costs"), 2, costs, ["zero1", "zero2", "fsdp2"])[0]


class TestCosts:
    """A step of two micro-batches on each of two ranks, in bf16; 16 blocks, so 17 groups of parameters."""

    @pytest.mark.parametrize("name", ["zero2", "fsdp2"])
    def test_a_rank_holds_weights_and_its_share_of_all_else(self, found, name):
        assert found[name]["bytes per parameter"] <= 2 + 16 / 2 + 0.1

    def test_stage_1_holds_all_gradients_in_float32_and_none_in_bf16(self, found):
        assert found["zero1"]["bytes per parameter"] == pytest.approx(6 + 12 / 2, abs=0.1)

    def test_zero_2_reduces_every_gradient_to_its_owner_once_per_micro_batch(self, found):
        traffic, parameters = found["zero2"]["traffic"], found["zero2"]["parameters"]
        assert traffic.elements(torch.float32, "reduce") == pytest.approx(2 * parameters, rel=1e-3)
        assert traffic.count("reduce") == 2 * 2
        assert traffic.count("all_reduce", "all_reduce_coalesced", "broadcast") == 0
        assert traffic.elements(torch.bfloat16, "all_gather_into_tensor") == pytest.approx(parameters, rel=1e-3)

    def test_fsdp_gathers_each_block_once_per_step_and_reduces_it_once_per_micro_batch(self, found):
        traffic, parameters = found["fsdp2"]["traffic"], found["fsdp2"]["parameters"]
        assert traffic.count("all_gather_single") == 17
        assert traffic.elements(torch.bfloat16, "all_gather_single") == pytest.approx(parameters, rel=1e-3)
        assert traffic.count("reduce_scatter_single") == 2 * 17
        assert traffic.elements(torch.float32, "reduce_scatter_single") == pytest.approx(2 * parameters, rel=1e-3)
        assert traffic.count("all_reduce", "broadcast", "reduce") == 0
