"""Memory of a GPU by formula: published counts, engines, and which settings need less."""

from __future__ import annotations

from dataclasses import replace

import pytest

from videotrain_api.config.presets import COMPANIONS, complete_autoencoder, complete_transformer
from videotrain_api.cost import flops, traced
from videotrain_api.cost.memory import RESERVE, MicroBatch, gpu_memory
from videotrain_api.cost.model_state import ModelState, Parameters, Sharding, model_state
from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.resource.stages import LoraAdapter

NOTHING = ModelState(0, 0, 0, 0, 0)
UNIT = 3072 * 2
"""Bytes of a token between blocks."""


@pytest.fixture
def shape() -> flops.MmditShape:
    autoencoder, text = COMPANIONS["mmdit-11b"]
    return flops.mmdit_shape(
        complete_transformer(TransformerSpec(preset="mmdit-11b")),
        complete_autoencoder(AutoencoderSpec(preset=autoencoder)),
        text,
    )


def batch(policy="none", samples=1, image=20_736, **fields) -> MicroBatch:
    return MicroBatch(samples=samples, image_tokens=image, text_tokens=512, recompute=policy, **fields)


@pytest.mark.parametrize(
    ("kernels", "policy", "double", "single"),
    [
        ("eager", "none", 27.05, 23.05),
        ("compiled", "none", 20.05, 18.05),
        ("eager", "selective", 11.02, 10.02),
        ("compiled", "selective", 11.02, 10.02),
        ("eager", "full", 1, 1),
        ("compiled", "full", 1, 1),
    ],
)
def test_blocks_keep_as_many_units_as_were_counted_on_the_published_model(kernels, policy, double, single):
    widths = {"hidden": 3072, "mlp": 12_288, "heads": 24, "head": 128, "one": 1}
    for kind, units in (("double", double), ("single", single)):
        kept = dict(zip(traced.FEATURES, traced.BLOCKS[kernels, policy, kind].kept, strict=True))
        for stream in ("image", "text"):
            found = sum(kept[f"{stream}_{name}"] * width for name, width in widths.items()) / UNIT
            assert found == pytest.approx(units, abs=0.01)


@pytest.mark.parametrize(
    ("engine", "stage", "float32", "bytes_per_parameter"),
    [
        ("deepspeed", 0, True, lambda n: 16),
        ("deepspeed", 1, False, lambda n: 6 + 12 / n),
        ("deepspeed", 2, False, lambda n: 2 + 16 / n),
        ("deepspeed", 3, False, lambda n: 26 / n),
        ("fsdp2", 2, False, lambda n: 2 + 16 / n),
        ("fsdp2", 0, False, lambda n: 2 + 16 / n),
    ],
)
@pytest.mark.parametrize("ranks", [1, 8, 224])
def test_an_engine_holds_its_bytes_per_parameter(engine, stage, float32, bytes_per_parameter, ranks):
    parameters = Parameters(trained=10**9, frozen=0, largest_block=1)
    sharding = Sharding(engine=engine, zero_stage=stage, offload="none", ranks=ranks, float32=float32, average=True)
    state = model_state(parameters, sharding)
    held = state.weights + state.gradients + state.optimizer
    assert held / 10**9 == pytest.approx(bytes_per_parameter(ranks), rel=1e-6)
    assert state.average / 10**9 == pytest.approx(4 if float32 else 4 / ranks, rel=1e-6)
    away = model_state(parameters, replace(sharding, offload="optimizer"))
    assert (state.optimizer - away.optimizer) / 10**9 == pytest.approx(8 if float32 else 12 / ranks, rel=1e-6)


def test_an_adapter_has_gradients_and_moments_of_its_own_alone(shape):
    lora = LoraAdapter(rank=16)
    parameters = Parameters(
        trained=flops.adapter_parameters(shape, lora), frozen=flops.parameters(shape), largest_block=1
    )
    sharding = Sharding(engine="fsdp2", zero_stage=0, offload="none", ranks=8, float32=False, average=False)
    state = model_state(parameters, sharding)
    assert state.weights == 2 * (parameters.frozen + parameters.trained)
    assert state.gradients + state.optimizer < state.weights / 100


def test_a_base_in_8_bits_is_half_of_its_bytes(shape):
    base, frozen = flops.quantized_base(shape), flops.parameters(shape)
    assert base.weights / frozen > 0.985, "what is not in the blocks is small"
    trained = flops.adapter_parameters(shape, LoraAdapter(rank=32))
    sharding = Sharding(engine="fsdp2", zero_stage=0, offload="none", ranks=8, float32=False, average=False)
    plain = Parameters(trained=trained, frozen=frozen, largest_block=1)
    held = replace(plain, quantized=base.weights, scales=base.rows, widened=base.largest)
    before, after = model_state(plain, sharding), model_state(held, sharding)
    assert before.weights - after.weights == base.weights - 2 * base.rows
    assert after.buffers - before.buffers == 2 * base.largest
    assert (before.gradients, before.optimizer) == (after.gradients, after.optimizer)
    assert [round(state.weights / 10**9, 1) for state in (before, after)] == [24.0, 12.2]


def test_the_published_model_fits_or_not_as_was_counted(shape):
    """What sharded gradients leave of an H200 is enough for 22 thousand tokens under `selective`, and not for 34."""
    sharding = Sharding(engine="deepspeed", zero_stage=2, offload="none", ranks=8, float32=False, average=False)
    state = model_state(Parameters(trained=flops.parameters(shape), frozen=0, largest_block=0), sharding)
    fits = {
        samples: gpu_memory(shape, state, batch("selective", samples, 2304, compiled=True)).total < 141 * 10**9
        for samples in (6, 12)
    }
    assert fits == {6: True, 12: False}


def test_less_is_kept_by_each_policy_and_all_of_it_counts(shape):
    totals = [gpu_memory(shape, NOTHING, batch(policy)) for policy in ("none", "selective", "full")]
    assert totals[0].total > 1.5 * totals[1].total > 2 * totals[2].total
    for memory in totals:
        assert memory.total == memory.activations + memory.temporaries + RESERVE


def test_full_for_some_blocks_lies_between_none_and_full(shape):
    def total(double, single):
        return gpu_memory(shape, NOTHING, batch("full", recomputed=(double, single))).total

    most, least = gpu_memory(shape, NOTHING, batch("none")).total, gpu_memory(shape, NOTHING, batch("full")).total
    assert total(0, 0) == most
    assert total(19, 38) == total(None, None) == total(100, 100) == least
    assert least < total(19, 0) < total(8, 0) < most
    assert least < total(8, 38) < total(8, 20) < most


def test_memory_grows_with_samples_and_tokens(shape):
    sizes = [gpu_memory(shape, NOTHING, batch("selective", samples)).activations for samples in (1, 2, 4)]
    assert sizes[2] == pytest.approx(2 * sizes[1], rel=1e-3)
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=1e-3)
    assert gpu_memory(shape, NOTHING, batch(image=20_737)).total > gpu_memory(shape, NOTHING, batch()).total


def test_fused_blocks_need_no_more_than_single_operations(shape):
    for policy in ("none", "selective", "full"):
        eager, fused = (gpu_memory(shape, NOTHING, batch(policy, compiled=c)).total for c in (False, True))
        assert fused < eager
