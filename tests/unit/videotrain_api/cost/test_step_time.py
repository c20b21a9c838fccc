"""The modelled time of a step is its counted work over stated rates, and moves as its parts do."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from videotrain_api.cost.published import ROWS, SHAPE, TEXT_TOKENS, row_flops, row_tokens
from videotrain_api.cost.rates import BANDS, MID
from videotrain_api.cost.step_time import Features, RowSize, micro_batch_time, step_time
from videotrain_api.resource.stages import AttentionKernel

FAST = Features(
    recompute="selective",
    double_blocks=19,
    single_blocks=38,
    compiled=True,
    attention="cudnn",
    eight_bit=False,
    sharded_gradients=True,
    gathers_under_forward=True,
    offloaded=False,
)
EAGER = replace(FAST, recompute="full", compiled=False, sharded_gradients=False, gathers_under_forward=False)
ROW = RowSize(image_tokens=2304, text_tokens=512, samples=6, context_parallel=1)


def test_parts_are_work_over_rate_by_hand():
    found = micro_batch_time(SHAPE, ROW, FAST, MID)
    tokens, d, blocks = 2816, 3072, 57
    edges = 2304 * d * (64 + 64 + 68) + 512 * d * 4096
    modulation = (19 * 12 + 38 * 3 + 2) * d * d + d * (256 + 768 + 2 * d)
    products = 24 * d * d * tokens * blocks + 2 * (edges + modulation)
    assert found.products == pytest.approx(6 * 3 * products / 700e12)
    assert found.attention == pytest.approx(6 * blocks * 4 * tokens**2 * d * (1 / 600e12 + 2.5 / 516e12))
    units = 19 * (31.1 + 88.7) + 38 * (20.1 + 68.4)
    assert found.elementwise == pytest.approx(6 * tokens * units * d * 2 / 3.9e12)
    assert found.exchange == found.repeated == 0


def test_a_forward_pass_is_repeated_under_full_recomputation_only():
    full, some, none = (
        micro_batch_time(SHAPE, ROW, replace(FAST, recompute=how, double_blocks=blocks), MID)
        for how, blocks in (("full", 19), ("full", 0), ("none", 19))
    )
    assert full.repeated > some.repeated > none.repeated == 0
    third = full.products / 3
    assert full.repeated == pytest.approx(third + 6 * 57 * 4 * 2816**2 * 3072 / 600e12, rel=0.03)


def test_each_ability_makes_a_step_faster():
    steps = [
        EAGER,
        replace(EAGER, compiled=True),
        replace(EAGER, compiled=True, recompute="selective"),
        replace(FAST, gathers_under_forward=False),
        FAST,
        replace(FAST, attention="flash3"),
        replace(FAST, attention="flash3", eight_bit=True),
    ]
    times = [step_time(SHAPE, ROW, 2, 8, features, MID).total for features in steps]
    assert times == sorted(times, reverse=True) and len(set(times)) == len(times)


def test_context_parallelism_divides_the_work_and_adds_an_exchange():
    long = RowSize(image_tokens=76032, text_tokens=512, samples=1, context_parallel=1)
    alone, shared = (micro_batch_time(SHAPE, replace(long, context_parallel=degree), FAST, MID) for degree in (1, 4))
    assert shared.attention == pytest.approx(alone.attention / 4)
    sent = 57 * 8 * (76544 / 4) * 3072 * 2 * 3 / 4
    assert shared.exchange == pytest.approx(sent / 300e9) and alone.exchange == 0


def test_a_ring_moves_keys_and_values_of_the_other_parts():
    long = RowSize(image_tokens=76032, text_tokens=512, samples=1, context_parallel=16, ring_parts=2)
    found = micro_batch_time(SHAPE, long, FAST, MID)
    heads = 57 * 8 * (76544 / 16) * 3072 * 2 * 7 / 8 / 300e9
    pair = 2 * (76544 / 2) * (3072 / 8)
    assert found.exchange == pytest.approx(heads + 57 * pair * (2 * 2 + 4) / 330e9)


def test_an_optimizer_on_the_host_makes_the_end_of_a_step_longer():
    near, far = (step_time(SHAPE, ROW, 2, 8, replace(FAST, offloaded=off), MID) for off in (False, True))
    assert far.tail > near.tail + 1 and far.micro_batch == near.micro_batch


def test_an_adapter_needs_no_gradients_of_the_weights():
    whole, part = (step_time(SHAPE, ROW, 2, 8, replace(EAGER, adapter=size), MID) for size in (None, 10_000_000))
    assert part.micro_batch.products == pytest.approx(whole.micro_batch.products * 2 / 3)
    assert part.tail < 0.01 * whole.tail + 0.01


@pytest.mark.parametrize("rates", BANDS.values())
def test_every_kernel_of_attention_has_rates(rates):
    assert set(rates.attention) == set(get_args(AttentionKernel))
    times = {
        kernel: micro_batch_time(SHAPE, ROW, replace(FAST, attention=kernel), rates).attention
        for kernel in ("flash3", "cudnn", "flash2", "math")
    }
    assert list(times.values()) == sorted(times.values())


def test_gradients_that_hide_under_backward_cost_nothing():
    found = step_time(SHAPE, ROW, 2, 224, FAST, MID)
    assert found.tail < 0.03
    slow = step_time(SHAPE, ROW, 2, 224, FAST, replace(MID, reduce=10e9))
    assert slow.tail > 1


def test_weights_that_are_gathered_for_each_pass_cost_what_hides_under_none():
    each = replace(FAST, gathers_in_each_pass=True)
    gather, reduce = (223 / 224 * size * 11_891_390_528 / 330e9 for size in (2, 4))
    small = replace(ROW, samples=1)
    for row, rounds in ((ROW, 2), (small, 1), (small, 12)):
        once, often = (step_time(SHAPE, row, rounds, 224, features, MID) for features in (FAST, each))
        backward = once.micro_batch.backward
        forward = (once.micro_batch.products + once.micro_batch.attention + once.micro_batch.elementwise) / 3
        more = max(0, gather - forward) + max(0, gather + reduce - backward) - max(0, reduce - backward)
        assert often.tail - once.tail == pytest.approx(rounds * more, rel=1e-3)
    assert often.tail > once.tail + 0.1


# The figures of an independent projection of the same model, 8 GPUs: samples per micro-batch, degree, gain over the
# published throughput at the mid rates.
GAINS = {
    "256px image": (23, 1, 2.85),
    "1024px image": (4, 1, 2.44),
    "256px 5-33f": (6, 1, 2.57),
    "256px 37-65f": (3, 1, 2.67),
    "256px 69-97f": (2, 1, 2.55),
    "256px 101-129f": (2, 1, 2.35),
    "768px 5-33f": (1, 1, 8.34),
    "768px 37-65f": (1, 2, 4.25),
    "768px 69-97f": (1, 4, 2.83),
    "768px 101-129f": (1, 4, 2.79),
}


@pytest.mark.parametrize("name", GAINS)
def test_the_model_agrees_with_an_independent_projection(name):
    samples, degree, gain = GAINS[name]
    row = next(row for row in ROWS if row.name == name)
    per_group = row.batch_size * degree / row.context_parallel
    size = RowSize(row_tokens(row), TEXT_TOKENS, samples, degree)
    seconds = {band: step_time(SHAPE, size, per_group / samples, 8, FAST, rates).total for band, rates in BANDS.items()}
    rates = {band: per_group * 8 / degree / time for band, time in seconds.items()}
    # Two decimals of the projection.
    assert rates["mid"] / row.samples_per_second == pytest.approx(gain, abs=0.011)
    assert rates["low"] < rates["mid"] < rates["high"]
    utilisation = rates["high"] * row_flops(row) / 8 / 989e12
    assert utilisation < 0.65, "no published training of such a model comes near"
