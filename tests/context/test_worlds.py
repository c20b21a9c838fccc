"""Stages that share sequences at every degree, under every engine and in every order: all learn the same.

Bounds are those of worlds of different size, which add the same float32 numbers in another order.
"""

from __future__ import annotations

import pytest
from support.context_worlds import Case, compile_block, run_ranks
from support.training_worlds import (
    LEARNING_RATE,
    Plan,
    difference,
    final_weights,
    make_latents,
    run_world,
    train_config,
)
from support.world_ends import assert_same_training

from videotrain_api.resource.stages import Bucket, LoraAdapter, ParallelLayout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDING = 5e-3 * LEARNING_RATE
"""Shared clips add the same numbers in another order, and Adam divides by gradients that are almost 0: 5e-4 was seen,
and another CPU rounds otherwise. A gradient that is lost or counted twice moves weights by about the whole rate."""
ENGINES = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "fsdp2": {"engine": "fsdp2"},
}
WORLDS = [(2, 2, 1), (3, 3, 1), (4, 2, 4), (4, 4, 2)]
"""Ranks, and degrees of the short and of the long row. With two ranks a node and two heads, 3 is a ring alone and 4 a
ring of two pairs; 4 micro-batches are not even among 3 ranks, nor 3 of the long row among 2 or 4."""
LONG_CLIP = {"64px/1025f/1:1": (6, 1, (257, 1, 2))}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return make_latents(tmp_path_factory.mktemp("latents"))


def config(folder, latents, short=1, long=1, engine="zero1", **changes):
    """A stage whose rows have these degrees."""
    rows = [
        Bucket(resolution="64px", frames=8, batch_size=2, context_parallel=short),
        Bucket(resolution="64px", frames=16, batch_size=1, context_parallel=long, micro_batches=3),
    ]
    layout = ParallelLayout(micro_batches_per_step=4, **ENGINES[engine])
    return train_config(folder, latents, **{"buckets": rows, "parallel": layout} | changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents):
    """One process with whole sequences, never disturbed: the yardstick."""
    folder = tmp_path_factory.mktemp("alone")
    assert run_world(folder, config(folder, latents), 1).outcomes == ["completed"]
    return folder


@pytest.mark.parametrize(("size", "short", "long"), WORLDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_learns_the_same_at_every_degree(tmp_path, latents, alone, engine, size, short, long):
    result = run_world(tmp_path, config(tmp_path, latents, short, long, engine), size)
    assert result.outcomes == ["completed"] * size, result.outcomes
    assert_same_training(tmp_path, alone, ROUNDING)


CHAINS = [
    [("zero1", 4, 4, 4), ("fsdp2", 2, 2, 2), ("zero3", 3, 1, 1), ("zero2", 4, 2, 4)],
    [("fsdp2", 4, 2, 4), ("zero0", 1, 1, 1), ("zero2", 2, 1, 2), ("zero1", 3, 3, 3)],
    [("zero3", 4, 4, 2), ("zero2", 1, 1, 1), ("zero0", 2, 2, 2), ("fsdp2", 4, 4, 4)],
    [("zero2", 2, 2, 2), ("zero1", 4, 1, 2), ("fsdp2", 3, 1, 3), ("zero3", 2, 2, 1)],
]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_stage_goes_on_under_other_engines_in_other_worlds_at_other_degrees(tmp_path, latents, alone, chain):
    for number, (engine, size, short, long) in enumerate(chain, start=1):
        last = number == len(chain)
        plan = Plan(generation=number, drain_during=None if last else 2 * number)
        result = run_world(tmp_path, config(tmp_path, latents, short, long, engine), size, plan)
        assert result.outcomes == ["completed" if last else "drained"] * size, (engine, result.outcomes)
        assert result.started.resumed_step == 2 * (number - 1)
    assert_same_training(tmp_path, alone, ROUNDING)


@pytest.mark.parametrize(("engine", "recompute"), [("zero2", "selective"), ("fsdp2", "full")])
def test_adapters_with_recomputed_blocks_in_bf16_share_sequences(tmp_path, latents, engine, recompute):
    """Two worlds that differ by the degree and what is recomputed, as an adapter is trained on a real model."""
    base = tmp_path / "base"
    assert run_world(base, config(base, latents, steps=1), 1).outcomes == ["completed"]
    weights, losses = f"file://{base}/stage/weights/model.safetensors", []
    for degree in (1, 2):
        folder = tmp_path / str(degree)
        layout = ParallelLayout(
            micro_batches_per_step=4, recompute=recompute if degree > 1 else "none", **ENGINES[engine]
        )
        adapter = {"precision": "bf16", "lora": LoraAdapter(rank=2), "parallel": layout}
        stage = config(folder, latents, degree, degree, **adapter)
        paths = stage.paths.model_copy(update={"initial_weights": weights})
        result = run_world(folder, stage.model_copy(update={"paths": paths}), 2)
        assert result.outcomes == ["completed"] * 2, result.outcomes
        losses.append([step.loss for step in result.steps])
    # bf16 keeps 8 bits, and the mean of a loss is over thousands of elements that are rounded apart.
    assert losses[1] == pytest.approx(losses[0], rel=2**-8)


def test_compiled_blocks_compute_what_blocks_as_written_do(tmp_path):
    """In one node by heads, in two by blocks of the sequence; even and uneven parts."""
    cases = [Case(degree=2), Case(degree=2, gpus_per_node=1)]
    for found in run_ranks(tmp_path, 2, compile_block, cases, [(16, 64), (15, 35), (9, 50)]):
        for compiled in found.values():
            assert compiled.breaks == {}
            # Sums of some hundred float64 products, in another order at most.
            assert compiled.difference < 1e-12


def test_a_stage_of_traced_blocks_learns_what_one_of_written_ones_does(tmp_path, latents):
    """Both with shared clips, so that the same numbers are added in the same order."""
    folders = {name: tmp_path / name for name in ("off", "on")}
    for name, folder in folders.items():
        stage = config(folder, latents, 2, 2, compile=name)
        assert run_world(folder, stage, 2, Plan(backend="eager")).outcomes == ["completed"] * 2
    assert difference(final_weights(folders["on"]), final_weights(folders["off"])) < ROUNDING


def test_a_clip_of_1025_frames_is_trained_over_two_nodes(tmp_path):
    latents = make_latents(tmp_path, sizes=LONG_CLIP)
    row = Bucket(resolution="64px", frames=1025, batch_size=1, micro_batches=1)
    folders = []
    for size in (1, 4):
        folders.append(tmp_path / str(size))
        rows = [row.model_copy(update={"context_parallel": size})]
        result = run_world(folders[-1], config(folders[-1], latents, buckets=rows, steps=3), size)
        assert result.outcomes == ["completed"] * size, result.outcomes
    assert_same_training(folders[1], folders[0], ROUNDING, step=3)
