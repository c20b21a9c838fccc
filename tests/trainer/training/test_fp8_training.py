"""FP8 products in real worlds under both engines: they learn what bf16 learns, and checkpoints do not know of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from support.at_length import at_length
from support.training_worlds import Plan, final_weights, make_latents, run_world, train_config

from videotrain_api.resource.stages import Bucket, ParallelLayout

pytestmark = pytest.mark.numeric

GAP = 5e-3
"""Of the losses, relative."""
CLIPS = {"512px/8f/1:1": (8, 2, (2, 16, 16))}
"""A micro-batch has 1,024 image tokens: its text is left in bf16, everything else is not."""


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return make_latents(tmp_path_factory.mktemp("latents"), sizes=CLIPS)


def config(folder, latents, **changes):
    buckets = [Bucket(resolution="512px", frames=8, batch_size=2)]
    task = {"buckets": buckets, "precision": "bf16", "steps": 6, "ema_decay": None}
    return train_config(folder, latents, **(task | changes))


def layout(recompute="none", **engine):
    return ParallelLayout(micro_batches_per_step=2, recompute=recompute, **engine)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, latents):
    folder = tmp_path_factory.mktemp("plain")
    result = run_world(folder, config(folder, latents, parallel=layout(zero_stage=1)), 1)
    assert result.outcomes == ["completed"], result.outcomes
    return folder, [step.loss for step in result.steps]


@pytest.mark.parametrize(
    ("engine", "recompute"),
    [
        at_length({"zero_stage": 1}, "none"),
        ({"zero_stage": 2}, "selective"),
        at_length({"zero_stage": 3}, "full"),
        ({"engine": "fsdp2"}, "selective"),
    ],
)
def test_worlds_learn_what_bf16_learns(tmp_path, latents, plain, engine, recompute):
    task = {"parallel": layout(recompute, **engine), "fp8": True}
    result = run_world(tmp_path, config(tmp_path, latents, **task), 2)
    assert result.outcomes == ["completed"] * 2, result.outcomes
    losses = [step.loss for step in result.steps]
    assert losses == pytest.approx(plain[1], rel=GAP)
    assert losses != pytest.approx(plain[1], rel=1e-6)  # FP8 was used


def test_a_checkpoint_is_continued_with_and_without(tmp_path, latents, plain):
    fp8 = config(tmp_path, latents, parallel=layout(zero_stage=1), fp8=True)
    assert run_world(tmp_path, fp8, 2, Plan(drain_during=3)).outcomes == ["drained"] * 2
    result = run_world(tmp_path, config(tmp_path, latents, parallel=layout(engine="fsdp2")), 2, Plan(generation=2))
    assert result.outcomes == ["completed"] * 2, result.outcomes
    assert result.steps[0].step == 4
    assert [step.loss for step in result.steps] == pytest.approx(plain[1][3:], rel=GAP)
    ours, theirs = final_weights(tmp_path), final_weights(plain[0])
    assert {name: (w.shape, w.dtype) for name, w in ours.items()} == {n: (w.shape, w.dtype) for n, w in theirs.items()}


@pytest.mark.at_length
def test_a_longer_curve_stays_beside_that_of_bf16():
    path = Path(__file__).parents[3] / "benchmarks/fp8_parity.py"
    spec = importlib.util.spec_from_file_location("fp8_parity", path)
    parity = importlib.util.module_from_spec(spec)
    sys.modules["fp8_parity"] = parity
    spec.loader.exec_module(parity)
    losses = parity.curves(120)
    assert losses["fp8"] != losses["bf16"]
    assert abs(parity.gap(losses)) < GAP
    assert parity._mean(losses["bf16"][-20:]) < 0.9 * parity._mean(losses["bf16"][:20])  # it learns
