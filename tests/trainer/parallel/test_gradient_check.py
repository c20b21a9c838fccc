"""The gradient check of a start, with engines that lose nothing and engines that do."""

from __future__ import annotations

import os

import pytest
from support.engine_worlds import check_with, in_world
from support.training_worlds import Plan, make_latents, run_world, train_config

from videotrain_api.records import StartedRecord
from videotrain_api.resource.stages import ParallelLayout
from videotrain_api.vocabulary import ExitCode

pytestmark = pytest.mark.numeric


WHOLE = os.environ.get("VIDEOTRAIN_ENGINES") == "all"
ENGINES = ["zero1", "zero2", "zero3", "offload2", "fsdp2", "fsdp2-offload"]
WORLDS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (4, 4)]
"""Ranks, and how many of them share a sequence."""


@pytest.mark.parametrize(
    ("engines", "precision", "size", "degree"),
    [(ENGINES, precision, *world) for precision in ("bf16", "fp32") for world in WORLDS]
    if WHOLE
    else [(["zero2", "fsdp2"], "bf16", 3, 1), (["zero3", "fsdp2"], "fp32", 4, 2)],
)
def test_what_an_honest_engine_finds_is_rounding(tmp_path, engines, precision, size, degree):
    for found in in_world(tmp_path, size, check_with, engines, precision, degree):
        for name, (said, verdict) in found.items():
            assert said == "passed", (name, verdict)
            # Far from the bound, so that another CPU's roundings do not reach it.
            assert verdict.worst_error < verdict.bound / 3, name
            assert (verdict.cases, verdict.engine.endswith(precision)) == (2, True)


@pytest.mark.parametrize(
    ("engine", "precision", "loss", "part"),
    [
        ("fsdp2", "bf16", "of a rank", "final_layer.linear"),
        ("zero2", "fp32", "of a rank in one block", "double_blocks.1"),
        ("zero1", "bf16", "factor of the degree", ""),
    ],
)
def test_lost_gradients_are_refused_by_all_ranks(tmp_path, engine, precision, loss, part):
    found = [rank[engine] for rank in in_world(tmp_path, 2, check_with, [engine], precision, 1, loss)]
    assert [said for said, _ in found] == ["refused"] * 2, found
    assert found[0][1] == found[1][1]
    assert f"gradients of {part}" in found[0][1]


def test_a_start_tells_what_its_check_found(tmp_path):
    layout = ParallelLayout(micro_batches_per_step=2, engine="fsdp2")
    config = train_config(tmp_path, make_latents(tmp_path), steps=1, parallel=layout, precision="bf16")
    started = run_world(tmp_path, config, 2).of(StartedRecord)[0]
    assert started.gradient_check.engine == "fsdp2, bf16"
    assert 0 <= started.gradient_check.worst_error < started.gradient_check.bound


def test_a_generation_whose_engine_loses_gradients_ends_before_it_has_trained(tmp_path):
    config = train_config(tmp_path, make_latents(tmp_path))
    result = run_world(tmp_path, config, 2, Plan(lose_gradients=True))
    assert result.codes == [int(ExitCode.GRADIENTS)] * 2, result.outcomes
    assert "gradient check: deepspeed zeroStage 2, fp32 on 2 processes" in result.outcomes[0]
    assert result.steps == []
    assert not (tmp_path / "stage/checkpoints").exists()
