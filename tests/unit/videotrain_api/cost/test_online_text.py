"""What captions that are encoded beside training take: memory, time, storage and what encode stages leave out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from videotrain_api.cost.clip_stage_memory import drawing_between_steps, encode_rows
from videotrain_api.cost.forecast import forecast, row_time
from videotrain_api.cost.host_memory import host_memory
from videotrain_api.cost.preparation import preparation
from videotrain_api.cost.rates import MID
from videotrain_api.cost.stage_data_wait import sample_bytes
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.cost.storage import planned_storage
from videotrain_api.references import references
from videotrain_api.resource.stages import TrainingSamples
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.validation import check, parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests/examples"
WEIGHTS = 2 * (4_762_310_656 + 123_060_480)
"""Of T5-XXL's encoder and of CLIP-L's, in bfloat16."""
WORK = 4 * 512 * (64 * 512 * 14 + 80 * 4096)
"""Of four captions of 512 tokens."""


def manifest(text: str, name: str = "open-sora-2-from-videos.yaml") -> VideoTrainingRun:
    body = yaml.safe_load((EXAMPLES / name).read_text())
    for stage in body["spec"]["stages"]:
        if "train" in stage:
            stage["train"]["text"] = text
    return parse_run(body)


@pytest.fixture(scope="module")
def stored():
    return manifest("stored")


@pytest.fixture(scope="module")
def online():
    return manifest("online")


def tables(run):
    return [TrainMemory(run, index) for index, stage in enumerate(run.spec.stages) if stage.train]


def test_the_encoders_and_a_pass_of_them_are_on_every_gpu(stored, online):
    assert 9.7e9 < WEIGHTS < 9.8e9
    for one, other in zip(tables(stored), tables(online), strict=True):
        for number in range(len(one.task.buckets)):
            before, after = one.of(number, 64), other.of(number, 64)
            assert (before.memory.text, after.memory.text) == (0, WEIGHTS + WORK)
            assert after.total - before.total == WEIGHTS + WORK
    assert check(online) == []


def test_a_stage_that_has_no_room_for_them_is_told_what_they_take(stored, online):
    highest = max(table.of(number, 64).total for table in tables(stored) for number in range(len(table.task.buckets)))
    small = {"gpu_memory_gigabytes": highest / 1e9 + 5}
    stages = [stage.model_copy(update={"pool": None}) for stage in online.spec.stages]
    pool = online.spec.pool.model_copy(update=small)
    spec = online.spec.model_copy(update={"pool": pool, "stages": stages})
    messages = [str(problem) for problem in check(online.model_copy(update={"spec": spec}))]
    assert any("text encoders 11." in message for message in messages), messages


def test_videos_that_are_drawn_meanwhile_are_beside_the_encoders(stored, online):
    index = next(index for index, stage in enumerate(stored.spec.stages) if stage.train)
    task = TrainingSamples(every_steps=100, prompts=[{"text": "A cat."}], resolution="256px", frames=33)
    before, after = (drawing_between_steps(run, index, task) for run in (stored, online))
    assert after.models - before.models == WEIGHTS + WORK


def test_a_node_reads_the_encoders_once_per_process_before_it_trains(stored, online):
    (one, *_), (other, *_) = tables(stored), tables(online)
    before, after = host_memory(one, 224), host_memory(other, 224)
    assert after.start == max(before.start, one.pool.gpus_per_node * WEIGHTS) > before.start
    assert after.in_training == before.in_training


def test_steps_take_as_much_longer_as_the_encoder_multiplies(stored, online):
    """T5-XXL has 4.87 TFLOP for 512 tokens: up to some percent of a 256px video, next to nothing of a 768px one."""
    shares = {}
    for one, other in zip(tables(stored), tables(online), strict=True):
        for row in one.task.buckets:
            gpus = 224 // one.task.parallel.degree_of(row) * one.task.parallel.degree_of(row)
            before, after = (row_time(t.run, t.task, row, gpus, MID, 8) for t in (one, other))
            added = row.batch_size * 2 * 4.76e9 * 512 / MID.products
            assert after.micro_batch.text == pytest.approx(added)
            assert after.total - before.total == pytest.approx(before.rounds * added / MID.share, rel=0.01)
            shares[row.resolution, row.frames] = after.total / before.total - 1
    assert 0.005 < shares["256px", 129] < 0.01 < shares["256px", 33] < 0.04
    assert shares["768px", 129] < 0.005
    plain, beside = forecast(stored), forecast(online)
    assert 1 < beside.cost_micros / plain.cost_micros < 1.05


def test_samples_are_smaller_and_encode_stages_encode_no_captions(stored, online):
    (one, *_), (other, *_) = tables(stored), tables(online)
    row = max(one.task.buckets, key=lambda row: row.frames)
    features = 2 * (512 * 4096 + 768)
    assert sample_bytes(one, row) - sample_bytes(other, row) == features - 1024
    kept = [_samples(run) for run in (stored, online)]
    assert kept[1] < 0.7 * kept[0]
    index = next(index for index, stage in enumerate(stored.spec.stages) if stage.encode)
    work = [preparation(1000, r.spec.stages, r.spec.autoencoder, r.spec.text_encoder, index) for r in (stored, online)]
    assert (work[0].texts_per_clip, work[1].texts_per_clip) == (2, 0)
    assert work[0].samples_per_clip == work[1].samples_per_clip
    assert work[1].encode_gpu_hours < work[0].encode_gpu_hours


def _samples(run):
    """Bytes of the encoded set of 1,000 hours of video."""
    planned = planned_storage(run, forecast(run, hours_of_video=1000))
    return max(one.bytes for one in planned if one.kept == "samples")


def test_stages_that_encode_captions_read_the_encoders_weights(stored, online):
    for run in (stored, online):
        (found,) = (one for one in references(run) if one.path == "spec.textEncoder.weights")
        trains = {index for index, stage in enumerate(run.spec.stages) if stage.train}
        assert trains & set(found.stages) == (trains if run is online else set())


def test_captions_that_are_encoded_together_are_counted_in_an_encode_stage(stored):
    index = next(index for index, stage in enumerate(stored.spec.stages) if stage.encode)
    assert max(memory.work for _, memory in encode_rows(stored, index)) >= 16 * WORK // 4
