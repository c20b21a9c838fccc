"""An adapter over a base in 8 bits in real worlds: both engines, resumption, the merged result, and its curve."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapter_worlds import adapter_stage, assert_adapter_alone, assert_merged, base_weights
from support.at_length import at_length
from support.training_worlds import LEARNING_RATE, Plan, difference, final_weights, run_world

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.networks.quantized import STORED, rowwise

pytestmark = pytest.mark.numeric


def stage(folder, latents, base, kind="int8", **changes):
    return adapter_stage(folder, latents, base, kind, **changes)


def layout(**engine):
    return ParallelLayout(micro_batches_per_step=4, **engine)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The weights that are adapted."""
    return base_weights(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents, base):
    folder = tmp_path_factory.mktemp("alone")
    result = run_world(folder, stage(folder, latents, base, parallel=layout()), 1)
    assert result.outcomes == ["completed"], result.outcomes
    return folder, [step.loss for step in result.steps]


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        at_length("int8", {"zero_stage": 1}),
        ("fp8", {"zero_stage": 2, "recompute": "selective"}),
        at_length("fp8", {"engine": "fsdp2"}),
    ],
)
def test_worlds_learn_over_8_bits_what_they_learn_over_the_widened_base(tmp_path, latents, base, kind, engine):
    """The second world is given the weights as they are after rounding, and holds them in the type of training."""
    changes = {"precision": "bf16", "parallel": layout(**engine), "steps": 4}
    found = run_world(tmp_path / "8", stage(tmp_path / "8", latents, base, kind, **changes), 2)
    assert found.outcomes == ["completed"] * 2, found.outcomes
    rounded = {}
    for name, value in load_file(base).items():
        held = value.dim() == 2 and name.endswith(".weight") and name.startswith(("double_blocks", "single_blocks"))
        values, scale = rowwise(value, STORED[kind], torch.bfloat16) if held else (value, 1)
        rounded[name] = values.to(torch.bfloat16) * scale if held else value
    save_file({name: value.float() for name, value in rounded.items()}, tmp_path / "rounded.safetensors")
    plain = stage(tmp_path / "16", latents, tmp_path / "rounded.safetensors", "none", **changes)
    expected = run_world(tmp_path / "16", plain, 2)
    assert expected.outcomes == ["completed"] * 2, expected.outcomes
    losses, others = ([step.loss for step in result.steps] for result in (found, expected))
    assert losses == pytest.approx(others, rel=1e-4)
    exact = run_world(tmp_path / "0", stage(tmp_path / "0", latents, base, "none", **changes), 2)
    assert losses != pytest.approx([step.loss for step in exact.steps], rel=1e-6), "8 bits were used"


def test_the_result_is_merged_into_the_weights_as_they_were(alone, base):
    assert_merged(alone[0], base)


def test_checkpoints_hold_the_adapter_alone(alone):
    assert_adapter_alone(alone[0])


def test_a_killed_stage_goes_on_to_the_same_result_under_the_other_engine(tmp_path, latents, base, alone):
    killed = run_world(tmp_path, stage(tmp_path, latents, base, parallel=layout()), 1, Plan(kill_after=5))
    assert killed.outcomes == ["killed"]
    config = stage(tmp_path, latents, base, parallel=layout(engine="fsdp2", recompute="full"))
    result = run_world(tmp_path, config, 2, Plan(generation=2))
    assert result.outcomes == ["completed"] * 2, result.outcomes
    assert result.started.resumed_step == 3
    assert difference(final_weights(tmp_path), final_weights(alone[0])) < 1e-3 * LEARNING_RATE  # see test_worlds_agree
    losses = [step.loss for step in result.steps]
    assert losses == pytest.approx(alone[1][3:], rel=1e-5)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_curve_stays_beside_that_of_a_base_that_is_not_rounded(tmp_path, latents, base, kind):
    curves = {}
    for name in ("none", kind):
        config = stage(tmp_path / name, latents, base, name, parallel=layout(), steps=40, ema_decay=None)
        result = run_world(tmp_path / name, config, 1)
        assert result.outcomes == ["completed"], result.outcomes
        curves[name] = [step.loss for step in result.steps]
    ends = {name: sum(curve[-10:]) for name, curve in curves.items()}
    assert ends["none"] < sum(curves["none"][:10]), "it learns"
    assert ends[kind] == pytest.approx(ends["none"], rel=0.02)
