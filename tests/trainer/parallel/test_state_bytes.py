"""Engines hold what `videotrain plan` says that they hold."""

from __future__ import annotations

from support.engine_worlds import in_world, options, small_model
from support.state_bytes import cutting_up, held_bytes

from videotrain_api.cost.model_state import Parameters, Sharding, model_state
from videotrain_trainer.parallel.blocks import blocks_of

RANKS = 2
ENGINES = [
    *(("bf16", name) for name in ("zero1", "zero2", "zero3", "fsdp2")),
    *(("fp32", name) for name in ("zero0", "zero1", "zero2", "zero3", "fsdp2")),
]


def test_engines_hold_between_backward_passes_what_the_formula_says(tmp_path):
    model = small_model()
    size = sum(parameter.numel() for parameter in model.parameters())
    largest = max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(model))
    measured = in_world(tmp_path, RANKS, held_bytes, ENGINES)[0]
    assert set(measured) == set(ENGINES)
    for (precision, name), found in measured.items():
        chosen = options(name, precision)
        state = model_state(
            Parameters(trained=size, frozen=0, largest_block=largest),
            Sharding(
                engine=chosen.engine,
                zero_stage=chosen.zero_stage,
                offload="none",
                ranks=RANKS,
                float32=precision == "fp32",
                average=False,
            ),
        )
        held = state.weights + state.gradients + state.optimizer
        # Rows are cut unevenly and flat tensors are padded: by less than a hundredth even here.
        assert 0.99 * held <= found <= 1.01 * (held + state.buffers), (precision, name, found / size, held / size)


def test_no_rank_ever_holds_all_weights_of_a_model_that_stage_3_cuts_up(tmp_path):
    for found in in_world(tmp_path, RANKS, cutting_up):
        share, layer = found["size"] // RANKS * 2, found["largest"] * 2
        assert share <= found["after"] <= 1.1 * share
        # A layer as it is made, and as it is cut up.
        assert found["peak"] <= 1.1 * share + 3 * layer < 2 * found["size"]
