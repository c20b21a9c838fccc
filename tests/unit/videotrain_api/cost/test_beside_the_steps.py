"""Starts, checkpoints, failures and the making of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from videotrain_api.cost.forecast import forecast
from videotrain_api.cost.overheads import Interruptions, overheads
from videotrain_api.cost.preparation import CURATE_SECONDS, clip_encoding, preparation
from videotrain_api.cost.sensitivity import sensitivity
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_api.resource.stages import Bucket
from videotrain_api.resource.trainrun import CheckpointPolicy, PeerCopies
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests/examples"
STAGE = {"gpus": 100, "steps": 8640, "seconds_per_step": 10.0, "state_bytes": 50e12}
VAE, T5 = AutoencoderSpec(preset="hunyuan-vae"), TextEncoderSpec(kind="t5-clip", weights="s3://weights/text")


def example(name: str):
    return parse_run(yaml.safe_load((EXAMPLES / name).read_text()))


def test_overheads_are_counted_by_hand():
    interruptions = Interruptions(per_1000_gpu_days=20, start_seconds=36)
    found = overheads(CheckpointPolicy(every_steps=144), interruptions, **STAGE)
    assert found.expected_failures == pytest.approx(2)
    assert found.starts == pytest.approx(1)
    # A day of steps is saved 60 times; each GPU copies half a terabyte in 10 s.
    assert found.checkpoints == pytest.approx(60 * 10 * 100 / 3600)
    assert found.failures == pytest.approx(2 * (720 + 36) * 100 / 3600)
    assert found.gpu_hours == pytest.approx(found.starts + found.checkpoints + found.failures)


def test_saving_by_the_clock_shortens_what_is_done_again():
    policies = [CheckpointPolicy(every_steps=2000), CheckpointPolicy(every_steps=2000, every_seconds=600)]
    rare, often = (overheads(policy, Interruptions(), **STAGE) for policy in policies)
    assert often.failures < rare.failures and often.checkpoints > rare.checkpoints


def test_copies_in_other_nodes_memory_shorten_what_is_done_again():
    copied = CheckpointPolicy(every_steps=2000, peer_copies=PeerCopies(every_steps=20))
    without, found = (
        overheads(policy, Interruptions(), **STAGE) for policy in (CheckpointPolicy(every_steps=2000), copied)
    )
    assert found.failures < without.failures
    assert found.failures == pytest.approx(found.expected_failures * (100 + 180) * 100 / 3600)
    assert found.checkpoints == pytest.approx(without.checkpoints + 8640 / 20 * 10 * 100 / 3600)


def rows(resolution: str) -> list[Bucket]:
    spans = [(1, None), (33, 5), (65, 37), (97, 69), (129, 101)]
    return [Bucket(resolution=resolution, frames=n, min_frames=m, batch_size=1) for n, m in spans]


def test_a_clip_is_encoded_for_every_row_and_decoded_for_every_length():
    # 192 frames: a picture, 5 x 33 + 25, 2 x 65 + 61, 97 + 93, 129.
    found = clip_encoding(rows("256px"), VAE, T5, 8.0)
    assert (found.samples, found.decodes) == (13, 8)
    assert found.seconds == pytest.approx(9, rel=0.1)
    both = clip_encoding([*rows("256px"), *rows("768px")], VAE, T5, 8.0)
    assert (both.samples, both.decodes) == (26, 16)
    assert both.seconds > 4 * found.seconds


def test_a_clip_shorter_than_a_row_gives_it_nothing():
    assert clip_encoding(rows("256px"), VAE, T5, 1.0).samples == 2
    assert clip_encoding(rows("256px")[2:], VAE, T5, 1.0).seconds == 0


def test_preparation_grows_with_the_hours_and_the_length_of_the_clips():
    run = example("open-sora-2.yaml")
    found = preparation(1000, run.spec.stages, run.spec.autoencoder, run.spec.text_encoder)
    assert found.clips == 450_000
    assert found.curate_core_hours == 1000 * CURATE_SECONDS
    assert forecast(run, hours_of_video=1000).preparation == found
    assert forecast(run).preparation is None


def test_more_failures_cost_more():
    run = example("open-sora-2.yaml")
    costs = [float(forecast(run, interruptions=Interruptions(per_1000_gpu_days=n)).overhead_cost) for n in (0.1, 1, 10)]
    assert costs == sorted(costs)


def test_each_changed_rate_moves_the_cost_its_way():
    found = {change.what: change.ratio for change in sensitivity(example("open-sora-2.yaml"))}
    better = [what for what, ratio in found.items() if ratio < 1]
    assert better == ["attention by FlashAttention 3, 648/561 TFLOP/s"]
    single = [ratio for what, ratio in found.items() if what.startswith(("matrix products", "attention at"))]
    # Not quite the sum: a longer backward pass hides more of the reductions.
    assert found["both"] == pytest.approx(1 + sum(ratio - 1 for ratio in single), rel=0.01)
