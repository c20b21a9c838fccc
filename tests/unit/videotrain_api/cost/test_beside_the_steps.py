"""Starts, checkpoints, failures and the making of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from videotrain_api.config.stage_config import LatentReader
from videotrain_api.cost.forecast import forecast
from videotrain_api.cost.overheads import Interruptions, overheads
from videotrain_api.cost.preparation import (
    CORES,
    CURATE_SECONDS,
    IMAGE_MODEL_SECONDS,
    SHOT_NETWORK_SECONDS,
    Preparation,
    clip_encoding,
    preparation,
)
from videotrain_api.cost.sensitivity import sensitivity
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import Bucket, CurateTask, ImageModel, Stage
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


def reader(stage: str, *tables: list[Bucket], keep: float = 1.0) -> LatentReader:
    found = [row.model_copy(update={"keep_probability": keep}) for table in tables for row in table]
    return LatentReader(stage=stage, seed=1, buckets=found, prompt_style="fps-motion")


def test_a_clip_is_decoded_once_and_encoded_for_what_stages_take():
    # 192 frames: a picture and 129 frames; the stages share the first, and one has the second at another size.
    small, large = reader("one", rows("256px")), reader("two", rows("256px")[:1], rows("768px")[1:])
    one, both = clip_encoding([small], VAE, T5, 8.0), clip_encoding([small, large], VAE, T5, 8.0)
    assert (one.samples, one.texts) == (2, 2)
    assert (both.samples, both.texts) == (3, 2)
    assert one.core_seconds == pytest.approx(129 * (1.9e-3 + 2.5e-3), rel=0.01)
    assert both.core_seconds == pytest.approx(129 * (1.9e-3 + 2.5e-3 + 7.6e-3), rel=0.01)
    assert one.gpu_seconds < 0.6 and both.gpu_seconds > 8 * one.gpu_seconds


def test_a_clip_that_loses_its_draw_goes_to_the_next_smaller_size():
    halved = reader("one", rows("768px")[1:], keep=0.5)
    halved = halved.model_copy(update={"buckets": [*halved.buckets, *rows("256px")[1:]]})
    assert clip_encoding([halved], VAE, T5, 8.0).samples == 1
    assert clip_encoding([reader("one", rows("768px"), keep=0.5)], VAE, T5, 8.0).samples == 1
    assert clip_encoding([halved, reader("two", rows("768px")[1:])], VAE, T5, 8.0).samples == pytest.approx(1.5)


def test_a_clip_shorter_than_a_row_gives_it_nothing():
    assert clip_encoding([reader("one", rows("256px"))], VAE, T5, 1.0).samples == 2
    assert clip_encoding([reader("one", rows("256px")[2:])], VAE, T5, 1.0).gpu_seconds == 0


def test_the_published_recipe_encodes_what_its_stages_take():
    run = example("open-sora-2.yaml")
    found = preparation(1000, run.spec.stages, run.spec.autoencoder, run.spec.text_encoder)
    # 256px, 768px and three in four 1024px pictures, since two stages draw; 129 frames at 256px and at 768px.
    assert found.samples_per_clip == pytest.approx(4.75)
    assert found.texts_per_clip == 2
    cheap = Pool(gpus_per_node=8, price_per_gpu_hour="2")
    assert found.node_hours("encode", cheap) == found.encode_gpu_hours / 8
    few = found.model_copy(update={"encode_core_hours": 2 * CORES * found.encode_gpu_hours})
    assert few.node_hours("encode", cheap) == pytest.approx(found.encode_gpu_hours / 4)


def test_preparation_grows_with_the_hours_and_the_length_of_the_clips():
    run = example("open-sora-2.yaml")
    found = preparation(1000, run.spec.stages, run.spec.autoencoder, run.spec.text_encoder)
    assert found.clips == 450_000
    assert found.curate_core_hours == 1000 * CURATE_SECONDS
    assert forecast(run, hours_of_video=1000).preparation == found
    assert forecast(run).preparation is None


def test_a_network_that_finds_shots_and_a_model_that_looks_at_clips_are_counted():
    run = example("open-sora-2.yaml")
    plain = Stage(name="curate", task="curate", curate=CurateTask())
    model = ImageModel(weights="/models/clip")
    both = CurateTask(shot_detector="transnetv2", image_model=model)

    def of(task: CurateTask) -> Preparation:
        stages = [plain.model_copy(update={"curate": task}), *run.spec.stages]
        return preparation(1000, stages, run.spec.autoencoder, run.spec.text_encoder)

    alone, found = of(CurateTask()), of(both)
    cpus, gpus = (Pool(gpus_per_node=gpus, cpu="8") for gpus in (0, 8))
    assert alone.node_hours("curate", cpus) == 1000 * CURATE_SECONDS / 8
    assert found.node_hours("curate", gpus) == 1000 * (CURATE_SECONDS + SHOT_NETWORK_SECONDS) / 8
    assert found.node_hours("curate", cpus) == pytest.approx(
        found.node_hours("curate", gpus) + found.clips * IMAGE_MODEL_SECONDS / 3600 / 8
    )


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
