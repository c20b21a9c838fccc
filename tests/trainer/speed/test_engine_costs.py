"""What a step sends and what a rank holds, by engine.

A step of two micro-batches on each of two ranks, in bf16; 16 blocks, so 17 groups of parameters.
"""

from __future__ import annotations

import pytest
import torch
from support.engine_worlds import costs, in_world
from support.speed_counts import check


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_world(tmp_path_factory.mktemp("costs"), 2, costs, ["zero1", "zero2", "fsdp2"])[0]


@pytest.mark.parametrize("name", ["zero2", "fsdp2"])
def test_a_rank_holds_weights_and_its_share_of_all_else(found, name):
    assert found[name]["bytes per parameter"] <= 2 + 16 / 2 + 0.1


def test_stage_1_holds_all_gradients_in_float32_and_none_in_bf16(found):
    assert found["zero1"]["bytes per parameter"] == pytest.approx(6 + 12 / 2, abs=0.1)


def test_zero_2_reduces_every_gradient_to_its_owner_once_per_micro_batch(found):
    traffic, parameters = found["zero2"]["traffic"], found["zero2"]["parameters"]
    assert traffic.elements(torch.float32, "reduce") == pytest.approx(2 * parameters, rel=1e-3)
    assert traffic.count("reduce") == 2 * 2
    assert traffic.count("all_reduce", "all_reduce_coalesced", "broadcast") == 0
    assert traffic.elements(torch.bfloat16, "all_gather_into_tensor") == pytest.approx(parameters, rel=1e-3)


def test_fsdp_gathers_each_block_once_per_step_and_reduces_it_once_per_micro_batch(found):
    traffic, parameters = found["fsdp2"]["traffic"], found["fsdp2"]["parameters"]
    assert traffic.count("all_gather_single") == 17
    assert traffic.elements(torch.bfloat16, "all_gather_single") == pytest.approx(parameters, rel=1e-3)
    assert traffic.count("reduce_scatter_single") == 2 * 17
    assert traffic.elements(torch.float32, "reduce_scatter_single") == pytest.approx(2 * parameters, rel=1e-3)
    assert traffic.count("all_reduce", "broadcast", "reduce") == 0


def test_the_table_of_counts_has_them(found):
    def moved(of, dtype, *names):
        return round(of["traffic"].elements(dtype, *names) / of["parameters"], 2)

    reductions = ("all_reduce", "reduce", "reduce_scatter_single", "reduce_scatter_tensor")
    gathers = ("all_gather_into_tensor", "all_gather_single")
    counts = {
        name: {
            "bytes per parameter": round(of["bytes per parameter"], 1),
            "reductions": of["traffic"].count(*reductions),
            "float32 elements reduced, per parameter": moved(of, torch.float32, *reductions),
            "gathers": of["traffic"].count(*gathers),
            "bf16 elements gathered, per parameter": moved(of, torch.bfloat16, *gathers),
        }
        for name, of in found.items()
    }
    check("step of 2 ranks with 2 micro-batches each, 16 blocks", counts)
