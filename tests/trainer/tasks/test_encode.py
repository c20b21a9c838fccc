from __future__ import annotations

import json
import random
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save
from support.batches import training_inputs
from support.first_weights import begin

from videotrain_api.config.aspect import shapes
from videotrain_api.config.presets import complete_autoencoder, complete_transformer
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.sources import Source
from videotrain_api.resource.stages import Bucket, ConditioningMix, CurateTask, EncodeTask
from videotrain_api.resource.trainrun import Dataset
from videotrain_api.storage import layout
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, read_table
from videotrain_trainer.data.pixels import PixelLoader
from videotrain_trainer.data.sets import null_text_uri, open_clips, open_latents, read_set_info
from videotrain_trainer.diffusion.flow_matching import ModelFacts
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing
from videotrain_trainer.networks.build import (
    SCALING_FACTOR,
    build_autoencoder,
    initialize,
)
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import curate, encode
from videotrain_trainer.tasks.train import FlowObjective, null_text
from videotrain_trainer.text.byte_encoder import TextFeatures
from videotrain_trainer.text.encoders import build_text_encoder

ROWS = [
    Bucket(resolution="64px", frames=16, min_frames=8, batch_size=2, aspect_ratios=["16:9", "1:1"]),
    Bucket(resolution="32px", frames=1, batch_size=3),
]

SIZES = {"max_tokens": 48, "context_dim": 16, "pooled_dim": 8}
FACTS = ModelFacts(patch=2, cond_embed=True, guidance_embed=False, causal=True)
NULL = TextFeatures(context_BLD=torch.zeros(1, 48, 16), pooled_BP=torch.zeros(1, 8), lengths=[1])
SHAPE = shapes("64px", 32, ["16:9", "1:1"])["16:9"]


@pytest.fixture
def curated(tmp_path, paint_video, texture, make_config, make_context) -> str:
    """A curated set of three clips of 36 frames; returns its prefix."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(3):
        paint_video(folder / f"clip {number}.mp4", 36, texture(number))
    config = make_config(CurateTask(min_seconds=1.0), videos=folder.as_uri())
    assert curate.run(make_context(config)) == "completed"
    return config.paths.output


@pytest.fixture
def weights(store, storage, make_config) -> str:
    """Prefix of a finished autoencoder stage."""
    config = make_config(EncodeTask())
    autoencoder = build_autoencoder(config.autoencoder)
    initialize(autoencoder, seed=5)
    store.put(layout.final_weights(f"{storage.uri}/ae"), save(autoencoder.state_dict(), {SCALING_FACTOR: "2.0"}))
    return f"{storage.uri}/ae"


def encode_world(make_context, config, size: int, generation: int = 1) -> None:
    outcomes = {}

    def work(rank: int) -> None:
        outcomes[rank] = encode.run(make_context(config, rank, size, generation=generation))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == dict.fromkeys(range(size), "completed")


def test_clips_become_latents_and_text_features_that_a_train_stage_reads(
    store, curated, weights, make_config, make_context, train_task
):
    config = make_config(EncodeTask(), encode_rows=ROWS, clips=curated, autoencoder_weights=weights)
    encode_world(make_context, config, 1)
    rows = read_table(store, layout.latent_manifest(config.paths.output), LATENT_SCHEMA).to_pylist()
    assert {(row["bucket"], row["latent_frames"], row["latent_height"], row["latent_width"]) for row in rows} == {
        ("64px/16f/16:9", 4, SHAPE[0] // 32, SHAPE[1] // 32),
        ("32px/1f/1:1", 1, 1, 1),
    }
    assert len(rows) == 3 * 2 + 3  # 36 frames at 24 fps are two windows of 16; the rest of 4 is too short
    assert read_set_info(store, config.paths.output).prompts == ["fps-motion", "plain"]
    latents = open_latents(store, make_config(train_task(ROWS), latents=config.paths.output))
    assert latents.plan.start().step == 0
    loader = LatentLoader(store, latents, latents.plan.start(), [[0]] * len(latents.plan.buckets))
    order = latents.plan.step(latents.plan.start())
    batch = loader.fetch(order, 0)
    loader.close()
    assert torch.isfinite(batch.latent_BCTHW.float()).all()
    uid = latents.uid(order.bucket_index, order.micro_batches[0][0])
    row = next(row for row in rows if row["uid"] == uid)
    text = f"{row['caption']} 24 FPS, {int(row['motion'] + 0.5)} motion score."
    expected = build_text_encoder(config.text_encoder).encode([text])
    assert torch.equal(batch.context_BLD[0], expected.context_BLD[0].bfloat16())
    assert torch.equal(batch.pooled_BP[0], expected.pooled_BP[0].bfloat16())


def test_folders_of_several_sources_become_one_set_that_is_trained_on_by_weight(
    store, tmp_path, paint_video, texture, weights, make_config, make_context, train_task
):
    for number, name in enumerate(("film/same.mp4", "own/same.mp4", "own/deeper/other.mp4")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        paint_video(tmp_path / name, 36, texture(number))
    (tmp_path / "own/copy.mp4").write_bytes((tmp_path / "film/same.mp4").read_bytes())
    (tmp_path / "film/same.txt").write_text("A text beside it.")
    sources = [
        Source(name=name, uri=(tmp_path / name).as_uri(), weight=weight) for name, weight in (("film", 3), ("own", 1))
    ]
    dataset = Dataset(sources=sources, captions={"own/deeper/other.mp4": "By its path.", "same": "By its stem."})

    def with_sources(config):
        return config.model_copy(update={"dataset": dataset})

    curating = with_sources(make_config(CurateTask(min_seconds=1.0, drop_sources=["film/*.mkv"])))
    assert curate.run(make_context(curating)) == "completed"
    rows = read_table(store, layout.clip_manifest(curating.paths.output), CLIP_SCHEMA).to_pylist()
    assert {row["source"]: row["caption"] for row in rows} == {
        "film/same.mp4": "A text beside it.",
        "own/same.mp4": "By its stem.",
        "own/deeper/other.mp4": "By its path.",
    }, "the copy is of the source that has it first"
    paths = {"clips": curating.paths.output, "autoencoder_weights": weights}
    config = with_sources(make_config(EncodeTask(), encode_rows=ROWS, **paths))
    encode_world(make_context, config, 1)
    assert read_set_info(store, config.paths.output).sources == ["film", "own"]
    plan = open_latents(store, with_sources(make_config(train_task(ROWS), latents=config.paths.output))).plan
    parts = {bucket.name: bucket.parts for bucket in plan.buckets}
    assert parts == {"32px/1f/1:1": (1, 2), "64px/16f/16:9": (2, 4)}
    assert [phase.weights for phase in plan.phases] == [(3.0, 1.0)]


def test_the_first_and_last_frame_are_encoded_alone(store, curated, weights, make_config, make_context, train_task):
    config = make_config(EncodeTask(), encode_rows=ROWS[:1], clips=curated, autoencoder_weights=weights)
    encode_world(make_context, config, 1)
    latents = open_latents(store, make_config(train_task(ROWS[:1]), latents=config.paths.output))
    loader = LatentLoader(store, latents, latents.plan.start(), [[0]] * len(latents.plan.buckets))
    order = latents.plan.step(latents.plan.start())
    batch = loader.fetch(order, 0)
    loader.close()
    assert batch.cond_first_BC1HW.shape[2] == batch.cond_last_BC1HW.shape[2] == 1
    assert not torch.equal(batch.cond_first_BC1HW, batch.cond_last_BC1HW)
    assert not torch.equal(batch.cond_first_BC1HW, batch.latent_BCTHW[:, :, :1])


def test_worlds_of_every_size_and_restarts_make_the_same_set(
    store, storage, curated, weights, make_config, make_context
):
    sets = []
    for name, size in (("one", 1), ("three", 3), ("again", 2)):
        small = EncodeTask(shard_bytes=65536)
        output = f"{storage.uri}/{name}"
        config = make_config(small, encode_rows=ROWS, clips=curated, autoencoder_weights=weights, output=output)
        if name == "again":
            context = make_context(config)
            context.drain.requested = lambda units=f"{output}/units": bool(store.list(units))
            assert encode.run(context) == "drained"
            assert store.list(f"{output}/units")
            assert not store.exists(layout.latent_manifest(output))
        encode_world(make_context, config, size, generation=2)
        objects = {found.uri.removeprefix(output): store.get(found.uri) for found in store.list(output)}
        sets.append({key: data for key, data in objects.items() if not key.startswith("/progress")})
    assert sets[0] == sets[1] == sets[2]


def test_other_weights_are_another_set_and_missing_ones_an_error(
    store, storage, curated, weights, make_config, make_context
):
    config = make_config(EncodeTask(), encode_rows=ROWS[:1], clips=curated, autoencoder_weights=weights)
    encode_world(make_context, config, 1)
    before = {found.uri for found in store.list(f"{config.paths.output}/units")}
    autoencoder = build_autoencoder(config.autoencoder)
    initialize(autoencoder, seed=6)
    store.put(layout.final_weights(weights), save(autoencoder.state_dict(), {SCALING_FACTOR: "2.0"}))
    encode_world(make_context, config, 1, generation=2)
    assert len({found.uri for found in store.list(f"{config.paths.output}/units")}) == 2 * len(before)
    gone = make_config(EncodeTask(), encode_rows=ROWS, clips=curated, autoencoder_weights=f"{storage.uri}/no")
    with pytest.raises(ObjectMissing, match="weights"):
        encode.run(make_context(gone))


def test_weights_without_a_scale_need_one_in_the_specification(
    store, storage, curated, weights, make_config, make_context
):
    config = make_config(EncodeTask(), encode_rows=ROWS[:1], clips=curated, autoencoder_weights=weights)
    file = layout.final_weights(weights)
    store.put(file, save(load(store.get(file))))
    with pytest.raises(ConfigError, match=r"spec\.autoencoder\.scalingFactor: not set, and .*model\.safetensors"):
        encode.run(make_context(config))
    scaled = config.autoencoder.model_copy(update={"scaling_factor": 0.5})
    assert encode.run(make_context(config.model_copy(update={"autoencoder": scaled}))) == "completed"


def test_clips_that_fit_no_bucket_are_an_error_that_says_why(curated, weights, make_config, make_context):
    rows = [Bucket(resolution="256px", frames=16, batch_size=1), Bucket(resolution="64px", frames=64, batch_size=1)]
    config = make_config(EncodeTask(), encode_rows=rows, clips=curated, autoencoder_weights=weights)
    with pytest.raises(DataError, match=r"none of 3 clips fits .* 3 times too short for 64px/64f, 3 times too small"):
        encode.run(make_context(config))


def test_a_clip_that_is_misread_once_is_read_again(store, curated, weights, make_config, make_context, monkeypatch):
    whole, seen = ObjectStore.get, set()

    def misread(self, uri: str) -> bytes:
        data = whole(self, uri)
        if uri in seen or not uri.endswith(".mp4"):
            return data
        seen.add(uri)
        return data[:-1] + bytes([data[-1] ^ 4])

    monkeypatch.setattr(ObjectStore, "get", misread)
    config = make_config(EncodeTask(), encode_rows=ROWS, clips=curated, autoencoder_weights=weights)
    assert encode.run(make_context(config)) == "completed"
    assert len(seen) == 3


def test_no_flipped_bit_of_the_empty_captions_features_is_believed(store, curated, weights, make_config, make_context):
    config = make_config(EncodeTask(), encode_rows=ROWS, clips=curated, autoencoder_weights=weights)
    assert encode.run(make_context(config)) == "completed"
    latents, generator = SimpleNamespace(uri=config.paths.output), random.Random(3)
    uri = null_text_uri(config.paths.output)
    data, whole = store.get(uri), null_text(store, latents, config.text_encoder)
    for bit in generator.sample(range(8 * len(data)), 40):
        harmed = bytearray(data)
        harmed[bit // 8] ^= 1 << bit % 8
        store.put(uri, bytes(harmed))
        try:
            found = null_text(store, latents, config.text_encoder)
        except DataError as error:
            assert_names(error, uri)
        else:
            assert torch.equal(found.context_BLD, whole.context_BLD), f"bit {bit}"
            assert torch.equal(found.pooled_BP, whole.pooled_BP), f"bit {bit}"


def assert_names(error: Exception, uri: str) -> None:
    assert str(error).startswith(f"{uri}: ")


def test_a_damaged_clip_is_refused(store, curated, weights, make_config, make_context):
    uri = next(found.uri for found in store.list(f"{curated}/clips"))
    data = bytearray(store.get(uri))
    data[len(data) // 2] ^= 1
    store.put(uri, bytes(data))
    config = make_config(EncodeTask(), encode_rows=ROWS, clips=curated, autoencoder_weights=weights)
    with pytest.raises(DataError, match="does not fit its checksum"):
        encode.run(make_context(config))


def test_an_autoencoder_stage_gets_the_same_random_crops_in_every_world(
    store, curated, make_config, autoencoder_task, tmp_path
):
    row = Bucket(resolution="32px", frames=8, batch_size=2)
    clips = open_clips(store, make_config(autoencoder_task(row, micro_batches=3), clips=curated))
    assert clips.shapes == {"32px/8f/1:1": (32, 32)}
    orders = []
    state = clips.plan.start()
    for _ in range(4):
        orders.append(clips.plan.step(state))
        state = clips.plan.advance(state)

    def batches(world: int) -> dict:
        found = {}
        for rank in range(world):
            mine = range(rank, 3, world)
            loader = PixelLoader(
                store, clips, clips.plan.start(), [mine] * len(clips.plan.buckets), tmp_path / f"cache{world}"
            )
            found |= {(o.step, micro_batch): loader.fetch(o, micro_batch) for o in orders for micro_batch in mine}
            loader.close()
        return found

    alone, apart = batches(1), batches(3)
    assert alone.keys() == apart.keys()
    for key, batch in alone.items():
        assert batch.video_BCTHW.shape == (2, 3, 8, 32, 32)
        assert batch.video_BCTHW.abs().max() <= 1
        assert batch.keys == apart[key].keys
        assert torch.equal(batch.video_BCTHW, apart[key].video_BCTHW)
    assert len({json.dumps(batch.video_BCTHW[0, :, :, 0, 0].tolist()) for batch in alone.values()}) > 6
    assert len(list((tmp_path / "cache1" / "frames").glob("*.npy"))) == 3


def test_clips_too_short_for_the_autoencoder_are_an_error(store, curated, make_config, autoencoder_task):
    row = Bucket(resolution="32px", frames=64, batch_size=2)
    with pytest.raises(DataError, match="none of its 3 clips has 64 frames \\(the longest has 36"):
        open_clips(store, make_config(autoencoder_task(row), clips=curated))


def test_training_needs_no_text_encoder_because_the_empty_caption_is_stored(
    store, curated, weights, make_config, make_context, train_task
):
    config = make_config(EncodeTask(), encode_rows=ROWS[:1], clips=curated, autoencoder_weights=weights)
    encode_world(make_context, config, 1)
    train_config = make_config(train_task(ROWS[:1]), latents=config.paths.output)
    latents = open_latents(store, train_config)
    spec = config.text_encoder
    expected = build_text_encoder(spec).encode([""])
    named = TextEncoderSpec(kind="t5-clip", weights="s3://never/read", **SIZES)
    found = null_text(store, latents, named)
    assert torch.equal(found.context_BLD[0], expected.context_BLD[0, :1])
    assert torch.equal(found.pooled_BP, expected.pooled_BP)
    store.delete(null_text_uri(config.paths.output))
    assert null_text(store, latents, spec).lengths == [1]
    with pytest.raises(DataError, match="text dropout needs the empty caption's features; encode again"):
        null_text(store, latents, named)
    store.put(null_text_uri(config.paths.output), b"damaged")
    with pytest.raises(DataError, match="not the features of a caption"):
        null_text(store, latents, named)


def test_pictures_are_encoded_without_rate_and_motion(store, curated, weights, make_config, make_context, train_task):
    row = Bucket(resolution="32px", frames=1, batch_size=1)
    config = make_config(EncodeTask(), encode_rows=[row], clips=curated, autoencoder_weights=weights)
    encode_world(make_context, config, 1)
    latents = open_latents(store, make_config(train_task([row], micro_batches=1), latents=config.paths.output))
    loader = LatentLoader(store, latents, latents.plan.start(), [[0]] * len(latents.plan.buckets))
    batch = loader.fetch(latents.plan.step(latents.plan.start()), 0)
    loader.close()
    rows = read_table(store, layout.latent_manifest(config.paths.output), LATENT_SCHEMA).to_pylist()
    (caption,) = (row["caption"] for row in rows if row["uid"] == batch.keys[0].uid)
    expected = build_text_encoder(config.text_encoder).encode([caption])
    assert torch.equal(batch.context_BLD[0], expected.context_BLD[0].bfloat16())


def test_i2v_and_v2v_with_the_causal_autoencoder_encode_and_train(
    tmp_path, store, storage, paint_video, texture, make_config, make_context, train_task
):
    """The published image-to-video configurations for it cannot start."""
    folder = tmp_path / "long"
    folder.mkdir()
    paint_video(folder / "clip.mp4", 46, texture(1))
    config = make_config(CurateTask(min_seconds=1.0), videos=folder.as_uri())
    assert curate.run(make_context(config)) == "completed"
    causal = {
        "autoencoder": complete_autoencoder(AutoencoderSpec(preset="hunyuan-vae-tiny")),
        "model": complete_transformer(TransformerSpec(preset="mmdit-tiny")),
    }
    row = Bucket(resolution="64px", frames=45, batch_size=1, aspect_ratios=["1:1"])
    clips = config.paths.output
    config = make_config(EncodeTask(), encode_rows=[row], clips=clips, autoencoder_weights=f"{storage.uri}/vae")
    readers = [reader.model_copy(update={"references": ["v2v_head", "v2v_tail"]}) for reader in config.latent_readers]
    config = config.model_copy(update=causal | {"latent_readers": readers})
    autoencoder = build_autoencoder(config.autoencoder)
    initialize(autoencoder, seed=5)
    store.put(layout.final_weights(f"{storage.uri}/vae"), save(autoencoder.state_dict(), {SCALING_FACTOR: "1.0"}))
    encode_world(make_context, config, 1)
    for mix, frames in (
        (ConditioningMix(t2v=0, i2v_head=1), [0]),
        (ConditioningMix(t2v=0, i2v_loop=1), [0, 11]),
        (ConditioningMix(t2v=0, v2v_head=1), list(range(9))),
        (ConditioningMix(t2v=0, v2v_tail=1), list(range(3, 12))),
    ):
        trained = make_config(train_task([row], micro_batches=1, conditioning=mix), latents=config.paths.output)
        objective = FlowObjective(make_context(trained.model_copy(update=causal)), store)
        begin(objective)
        loader = objective.loader(objective.data.plan.start(), [[0]] * len(objective.data.plan.buckets))
        batch = loader.fetch(objective.data.plan.step(objective.data.plan.start()), 0)
        loader.close()
        inputs = training_inputs(batch, objective.task, FACTS, NULL, seed=1)
        assert inputs.given_BT[0].nonzero().flatten().tolist() == frames
        loss, _ = objective.loss(objective.module, batch)
        loss.backward()
        assert objective.module.cond_in.weight.grad.abs().max() > 0
    easy = make_config(train_task([row], conditioning=ConditioningMix(v2v_head_easy=1)), latents=config.paths.output)
    with pytest.raises(DataError, match=r"separately encoded frames for \['v2v_head', 'v2v_tail'\].*v2v_head_easy"):
        open_latents(store, easy.model_copy(update=causal))
