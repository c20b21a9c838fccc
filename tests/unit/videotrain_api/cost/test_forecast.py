"""The cost table reproduces the published one and its arithmetic is exact."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.cost import forecast, published, work
from videotrain_api.cost.preparation import CURATE_SECONDS
from videotrain_api.money import cost_micros, format_micros, parse_micros, round_half_up
from videotrain_api.resource.stages import Bucket, LoraAdapter, NodeBounds, ParallelLayout, node_counts
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests/examples"
ROW = Bucket(resolution="256px", frames=33, batch_size=3)
PUBLISHED_SECONDS = {"256px-t2v": 10.16, "256px-ti2v": 13.29, "768px-ti2v": 53.2}


def example(name: str):
    return parse_run(yaml.safe_load((EXAMPLES / name).read_text()))


def test_published_step_times_give_the_published_gpu_days_and_money():
    found = forecast.forecast(example("open-sora-2.yaml"), seconds_per_step=PUBLISHED_SECONDS)
    assert [stage.gpus for stage in found.stages] == [224, 192, 192]
    assert [stage.gpu_days for stage in found.stages] == pytest.approx([2240, 384, 1536], rel=0.02)
    assert found.gpu_days == pytest.approx(published.PUBLISHED_GPU_DAYS, rel=0.001)
    assert Fraction(found.cost) == pytest.approx(Fraction(published.PUBLISHED_COST), rel=0.001)
    assert found.cost_micros == sum(stage.cost_micros for stage in found.stages) and found.complete


def test_each_stage_stands_beside_its_published_row():
    found = forecast.forecast(example("open-sora-2.yaml"))
    assert [stage.published.gpu_days for stage in found.stages] == [2240, 384, 1536]
    assert sum(row.gpu_days for row in published.PUBLISHED) == published.PUBLISHED_GPU_DAYS
    assert sum(parse_micros(row.cost) for row in published.PUBLISHED) == parse_micros(published.PUBLISHED_COST)


def test_a_stated_mfu_scales_time_and_money():
    slow, fast = (forecast.forecast(example("open-sora-2.yaml"), mfu=mfu) for mfu in (0.225, 0.45))
    assert slow.gpu_days == pytest.approx(2 * fast.gpu_days)
    assert all(stage.mfu == pytest.approx(0.45) and stage.source == "modelled" for stage in fast.stages)
    assert fast.gpu_days < published.PUBLISHED_GPU_DAYS / 3


def test_a_step_is_counted_by_hand():
    stage = forecast.forecast(example("open-sora-2.yaml")).stages[2]
    rows = [(38, 2304), (6, 20736), (4, 39168), (3, 57600), (2, 76032)]
    assert stage.work.tokens_per_step == pytest.approx(sum(48 * b * (n + 512) for b, n in rows) / 5)
    assert stage.work.samples_per_step == pytest.approx(48 * (38 + 6 + 4 + 3 + 2) / 5)


def test_stages_without_known_work_are_left_out_and_the_sum_says_so():
    found = forecast.forecast(example("demo.yaml"))
    assert {s.name for s in found.stages if s.work is None} == {"curate", "encode", "score"} and not found.complete
    assert all(s.cost is not None for s in found.stages if s.task in ("train", "autoencoder", "sample"))


def test_hours_of_video_make_the_sum_complete():
    body = yaml.safe_load((EXAMPLES / "demo.yaml").read_text())
    assert body["spec"]["stages"].pop()["task"] == "evaluate", "whose work nobody counts"
    some, more = (forecast.forecast(parse_run(body), hours_of_video=hours) for hours in (100, 200))
    assert some.complete and more.complete
    costs = [[s.cost_micros for s in found.stages if s.task in ("curate", "encode")] for found in (some, more)]
    assert costs[1] == pytest.approx([2 * cost for cost in costs[0]], rel=1e-5)
    assert some.cost_micros == sum(stage.cost_micros for stage in some.stages)


def test_time_is_modelled_in_three_bands_and_the_mid_one_is_the_forecast():
    found = forecast.forecast(example("open-sora-2.yaml"))
    for stage in found.stages:
        low, mid, high = (stage.bands[name] for name in ("low", "mid", "high"))
        assert low.mfu < mid.mfu < high.mfu and low.seconds_per_step > mid.seconds_per_step > high.seconds_per_step
        assert (mid.seconds_per_step, mid.cost, mid.mfu) == (stage.seconds_per_step, stage.cost, stage.mfu)
        assert stage.assumes
    assert found.cost_by_band["mid"] == found.cost
    assert Fraction(found.cost_by_band["low"]) > Fraction(found.cost) > Fraction(found.cost_by_band["high"])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"fp8": True}, "FP8"),
        ({"compile": "auto"}, "compiled"),
        ({"attention": "flash3"}, "flash3"),
        ({"lora": LoraAdapter(rank=16)}, "adapter"),
        ({"parallel": {"engine": "fsdp2"}}, "fsdp2"),
        ({"parallel": {"recompute": "none"}}, "recompute none"),
    ],
)
def test_what_makes_steps_faster_makes_them_cheaper_and_is_told(fields, word):
    run = example("open-sora-2.yaml")
    stage = run.spec.stages[0]
    slow_layout = {"micro_batches_per_step": 224, "engine": "deepspeed", "recompute": "full"}
    plain = {"compile": "off", "attention": "cudnn", "parallel": ParallelLayout(**slow_layout), "buckets": [ROW]}
    slow = stage.train.model_copy(update=plain)
    layout = ParallelLayout(**(slow_layout | fields.get("parallel", {})))
    fast = slow.model_copy(update=fields | {"parallel": layout})
    before, after = (_first_stage(run, task) for task in (slow, fast))
    assert after.cost_micros < before.cost_micros
    assert any(word in part for part in after.assumes) and not any(word in part for part in before.assumes)


def _first_stage(run, task):
    stage = run.spec.stages[0].model_copy(update={"train": task})
    spec = run.spec.model_copy(update={"stages": [stage]})
    return forecast.forecast(run.model_copy(update={"spec": spec})).stages[0]


def test_a_given_time_has_no_bands_and_a_stated_utilisation_none_either():
    given = forecast.forecast(example("open-sora-2.yaml"), seconds_per_step=PUBLISHED_SECONDS)
    stated = forecast.forecast(example("open-sora-2.yaml"), mfu=0.4)
    assert not any(stage.bands for found in (given, stated) for stage in found.stages)
    assert set(given.cost_by_band.values()) == {given.cost}


def test_overheads_come_on_top():
    found = forecast.forecast(example("open-sora-2.yaml"))
    assert Fraction(found.total_cost) == Fraction(found.cost) + Fraction(found.overhead_cost)
    assert Fraction(found.overhead_cost) > 0


def test_the_published_times_imply_the_utilisation_that_the_tables_mean():
    assert [round(100 * stage.implied_mfu, 1) for stage in published.PUBLISHED] == [15.0, 11.5, 8.9]
    shares = [round(100 * published.row_utilisation(row), 1) for row in published.ROWS]
    assert shares == [18.7, 21.9, 20.9, 20.2, 19.0, 19.5, 20.9, 2.5, 5.6, 10.4, 15.4, 15.4]


def test_other_models_cost_their_hours():
    price = "2.00"
    costs = [forecast.gpu_cost_micros(3600 * run.gpu_hours, 1, price) // 1_000_000 for run in published.OTHER_RUNS]
    assert costs == [2_500_000, 1_000_000, 199_680]


@pytest.mark.parametrize(("mfu", "seconds", "message"), [(0, {}, "mfu"), (1.1, {}, "mfu"), (0.4, {"x": 1}, "no such")])
def test_wrong_arguments_are_refused(mfu, seconds, message):
    with pytest.raises(ValueError, match=message):
        forecast.forecast(example("tiny.yaml"), mfu=mfu, seconds_per_step=seconds)


def test_hours_of_nothing_are_refused():
    with pytest.raises(ValueError, match="hours of video"):
        forecast.forecast(example("tiny.yaml"), hours_of_video=0)


def test_a_step_time_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        forecast.forecast(example("tiny.yaml"), seconds_per_step={"train": 0.0})


def test_micro_batches_that_do_not_divide_evenly_make_gpus_wait():
    rows = [work.RowWork(micro_batches=6, context_parallel=1, flops_per_step=6e12)]
    step = work.StageWork(steps=1, samples_per_step=1, tokens_per_step=1, flops_per_step=6e12, rows=rows)
    seconds = [work.modelled_seconds(step, n, 1.0, 1e12) for n in (1, 2, 3, 4, 6)]
    assert seconds == pytest.approx([6, 3, 2, 2, 1])


def test_every_row_waits_for_its_own_groups():
    rows = [
        work.RowWork(micro_batches=4, context_parallel=1, flops_per_step=12e12),
        work.RowWork(micro_batches=3, context_parallel=4, flops_per_step=12e12),
    ]
    step = work.StageWork(steps=1, samples_per_step=1, tokens_per_step=1, flops_per_step=12e12, rows=rows)
    # Of 8 GPUs the first row leaves half without work; of the second row's two groups one has two micro-batches.
    assert work.modelled_seconds(step, 8, 1.0, 1e12) == pytest.approx((1.5 * 2 + 1.5 * 4 / 3) / 2)


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [
        (NodeBounds(min=2, max=4), [2, 3, 4]),
        (NodeBounds(min=1, max=8, allowed=[1, 4, 8]), [1, 4, 8]),
        (NodeBounds(min=2, max=4, allowed=[1, 4, 8]), [4]),
    ],
)
def test_node_counts(bounds, counts):
    assert list(node_counts(bounds)) == counts


@given(st.integers(0, 10**15))
def test_money_survives_its_spelling(micros):
    assert parse_micros(format_micros(micros)) == micros


@pytest.mark.parametrize("text", ["", "-1", "1.", ".5", "1.0000001", "1e3", "1,0", "٣"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match="amount"):
        parse_micros(text)


@given(st.integers(0, 10**15), st.integers(0, 10**9))
def test_cost_is_the_nearest_micro(microseconds, price):
    exact = Fraction(microseconds * price, 3_600_000_000)
    assert abs(cost_micros(microseconds, price) - exact) <= Fraction(1, 2)


def test_halves_are_rounded_up():
    assert [round_half_up(Fraction(n, 2)) for n in (0, 1, 2, 3)] == [0, 1, 1, 2]


def test_a_stage_is_priced_by_its_own_pool_and_told_beside_that_of_the_run():
    run = example("open-sora-2-from-videos.yaml")
    planned = forecast.forecast(run, hours_of_video=1000)
    curate, encode, train = planned.stages[:3]
    hours = 1000 * CURATE_SECONDS / 96
    assert (curate.gpus, curate.gpu_days, curate.price) == (0, 0, "2.40")
    assert curate.node_days == pytest.approx(hours / 24)
    assert float(curate.cost) == pytest.approx(hours * 2.40, abs=1e-6)
    assert float(curate.cost_on_run_pool) == pytest.approx(hours * 8 * 2.00, abs=1e-6), "96 cores beside eight GPUs"
    assert encode.node_days is None and encode.price == "0.80"
    assert float(encode.cost) == pytest.approx(24 * encode.gpu_days * 0.80, abs=1e-6)
    assert float(encode.cost_on_run_pool) == pytest.approx(24 * encode.gpu_days * 2.00, abs=1e-6)
    assert train.price == "2.00" and train.cost_on_run_pool is None
    assert planned.cost_micros == sum(stage.cost_micros for stage in planned.stages)


def test_lone_heads_of_an_autoencoder_stage_are_work():
    body = yaml.safe_load((EXAMPLES / "open-sora-2-dc-ae.yaml").read_text())
    plain = forecast.forecast(parse_run(body))
    stage = next(stage for stage in body["spec"]["stages"] if stage["task"] == "autoencoder")
    stage["autoencoder"]["headRatio"] = 0.5
    headed = forecast.forecast(parse_run(body))
    before, after = (next(s for s in found.stages if s.name == stage["name"]) for found in (plain, headed))
    # Half of the clips of 32 frames have one frame more through the encoder, which is less than half of the work.
    assert 1 < after.work.flops_per_step / before.work.flops_per_step < 1 + 0.5 / 32


def test_an_autoencoder_whose_layers_only_its_weights_tell_is_left_out_of_the_work():
    body = yaml.safe_load((EXAMPLES / "open-sora-2-from-videos.yaml").read_text())
    body["spec"]["autoencoder"] = {
        "kind": "diffusers",
        "causality": "causal",
        "latentChannels": 16,
        "compression": {"time": 4, "space": 8},
        "weights": "s3://videos/vae",
    }
    draw = {"resolution": "256px", "frames": 33, "samplingSteps": 2, "fromDataset": 1}
    body["spec"]["stages"].append({"name": "draw", "task": "sample", "sample": draw})
    found = forecast.forecast(parse_run(body), hours_of_video=10)
    assert found.stages[-1].name == "draw" and found.stages[-1].seconds_per_step > 0
