"""Videos that are left where they lie: listed, indexed by their bytes, encoded and trained on without a copy."""

from __future__ import annotations

from itertools import islice

import google_crc32c
import numpy as np
import pytest
from safetensors.torch import save
from support.tars import tar_of

from videotrain_api.resource.sources import Source
from videotrain_api.resource.stages import Bucket, CurateTask, EncodeTask
from videotrain_api.resource.trainrun import Dataset
from videotrain_api.storage import layout
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, read_table
from videotrain_trainer.data.pixels import PixelLoader
from videotrain_trainer.data.sets import open_clips, open_latents
from videotrain_trainer.data.video import decode
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.networks.build import SCALING_FACTOR, build_autoencoder, initialize
from videotrain_trainer.storage import ObjectStore, part_uri
from videotrain_trainer.tasks import curate, encode

TASK = CurateTask(min_seconds=1.0, in_place=True, long_side=64)
ROW = Bucket(resolution="64px", frames=16, batch_size=1, aspect_ratios=["16:9", "1:1"])


@pytest.fixture
def videos(tmp_path, paint_video, texture) -> dict[str, bytes]:
    """Whole ones, one with a cut, one at 60 frames per second, and one with black borders."""

    def cut(number):
        return texture(7)(number) if number < 30 else 255 - texture(8)(number)

    def bordered(number):
        frame = np.zeros((96, 160, 3), np.uint8)
        frame[12:84] = texture(9)(number)[12:84]
        return frame

    scenes = {"a": (36, texture(1), 24), "b": (36, texture(2), 24), "c": (50, texture(3), 30)}
    scenes |= {"cut": (60, cut, 24), "fast": (80, texture(4), 60), "bordered": (36, bordered, 24)}
    found = {}
    for name, (frames, scene, fps) in scenes.items():
        found[name] = paint_video(tmp_path / f"{name}.mp4", frames, scene, fps=fps).read_bytes()
    return found


@pytest.fixture
def curated(videos, store, storage, make_config, make_context):
    """The configuration of a stage that has curated a folder and a tar file of them in the bucket."""
    for name in ("a", "cut", "fast", "bordered"):
        store.put(f"{storage.uri}/raw/{name}.mp4", videos[name])
    store.put(f"{storage.uri}/tars/0.tar", tar_of({"b.mp4": videos["b"], "c.mp4": videos["c"]}))
    sources = [
        Source(name="folder", uri=f"{storage.uri}/raw"),
        Source(name="tars", form="webdataset", uri=f"{storage.uri}/tars"),
    ]
    config = make_config(TASK).model_copy(update={"dataset": Dataset(sources=sources)})
    assert curate.run(make_context(config)) == "completed"
    return config


def clips_of(store, config):
    table = read_table(store, layout.clip_manifest(config.paths.output), CLIP_SCHEMA).to_pylist()
    return [row for row in table if row["kept"]]


def by_video(rows):
    return {row["source"].rpartition("/")[2].removesuffix(".mp4"): row for row in rows}


def test_a_video_that_is_one_clip_is_named_by_its_bytes_and_others_are_written(store, storage, curated, videos):
    rows = clips_of(store, curated)
    named = by_video(rows)
    shard = store.get(f"{storage.uri}/tars/0.tar")
    assert named["a"]["uri"] == f"{storage.uri}/raw/a.mp4"
    for name in ("b", "c"):
        assert named[name]["uri"] == part_uri(f"{storage.uri}/tars/0.tar", shard.index(videos[name]), len(videos[name]))
    for name in ("a", "b", "c"):
        row = named[name]
        data = store.get(layout.clip_file(curated.paths.output, row["uri"]))
        assert data == videos[name] and google_crc32c.value(data) == row["crc32c"] and len(data) == row["bytes"]
        assert row["frames"] == sum(1 for _ in decode(data)) and row["motion"] > 0 and row["phash"]
        assert (row["width"], row["height"]) == (160, 96), "longSide does not count for it"
    written = {row["uri"] for row in rows if "://" not in row["uri"]}
    assert {row["source"] for row in rows if row["uri"] in written} == {
        "folder/bordered.mp4", "folder/cut.mp4", "folder/fast.mp4",
    }  # fmt: skip
    there = {info.uri.removeprefix(f"{curated.paths.output}/") for info in store.list(f"{curated.paths.output}/clips")}
    assert there == written


@pytest.fixture
def autoencoder(store, storage, curated) -> str:
    module = build_autoencoder(curated.autoencoder)
    initialize(module, seed=5)
    store.put(layout.final_weights(f"{storage.uri}/ae"), save(module.state_dict(), {SCALING_FACTOR: "2.0"}))
    return f"{storage.uri}/ae"


def test_they_are_encoded_and_trained_on_by_one_request_each(
    store, curated, autoencoder, make_config, make_context, train_task, autoencoder_task, monkeypatch, tmp_path
):
    rows = clips_of(store, curated)
    asked = []
    plain, part = ObjectStore.get, ObjectStore.get_range
    monkeypatch.setattr(ObjectStore, "get", lambda self, uri: asked.append(uri) or plain(self, uri))
    monkeypatch.setattr(
        ObjectStore,
        "get_range",
        lambda self, uri, at, size: asked.append(part_uri(uri, at, size)) or part(self, uri, at, size),
    )
    config = make_config(
        EncodeTask(), encode_rows=[ROW], clips=curated.paths.output, autoencoder_weights=autoencoder
    ).model_copy(update={"dataset": curated.dataset})
    assert encode.run(make_context(config)) == "completed"
    for row in rows:
        if "#bytes=" in row["uri"]:
            assert asked.count(row["uri"]) == 2, "told to get it, and one request of these bytes"
    training = make_config(train_task([ROW]), latents=config.paths.output)
    latents = open_latents(store, training.model_copy(update={"dataset": curated.dataset}))
    samples = read_table(store, layout.latent_manifest(config.paths.output), LATENT_SCHEMA).to_pylist()
    assert {row["uid"] for row in rows if "://" in row["uri"]} <= {sample["clip"] for sample in samples}
    assert sum(bucket.size for bucket in latents.plan.buckets) == len(samples)
    loader = LatentLoader(store, latents, latents.plan.start(), [[0, 1]] * len(latents.plan.buckets))
    for order in islice(latents.plan.walk(latents.plan.start()), 3):
        assert loader.fetch(order, 0).latent_BCTHW.isfinite().all()
    loader.close()
    # The autoencoder stage trains on the pixels themselves.
    pixels = make_config(autoencoder_task(ROW.model_copy(update={"frames": 8})), clips=curated.paths.output)
    clips = open_clips(store, pixels.model_copy(update={"dataset": curated.dataset}))
    reader = PixelLoader(store, clips, clips.plan.start(), [[0, 1]] * len(clips.plan.buckets), tmp_path / "cache")
    seen = set()
    for order in islice(clips.plan.walk(clips.plan.start()), 8):
        for number in range(len(order.micro_batches)):
            seen |= {key.uid for key in reader.fetch(order, number).keys}
    reader.close()
    assert {row["uid"] for row in rows if "://" in row["uri"]} <= seen


def test_a_video_that_changed_where_it_lies_is_refused(
    store, storage, curated, autoencoder, videos, make_config, make_context
):
    store.put(f"{storage.uri}/raw/a.mp4", videos["b"])
    config = make_config(
        EncodeTask(), encode_rows=[ROW], clips=curated.paths.output, autoencoder_weights=autoencoder
    ).model_copy(update={"dataset": curated.dataset})
    with pytest.raises(TrainerError, match=r"raw/a\.mp4: .*curate again: the clip does not fit its checksum"):
        encode.run(make_context(config))
