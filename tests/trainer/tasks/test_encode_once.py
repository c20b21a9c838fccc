"""A clip is decoded once, its caption encoded once, and what lies in the set is what training reads."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from support.noise_clips import READERS, curate_noise, encode_config, first_autoencoder

from videotrain_api.storage import layout
from videotrain_trainer.data import video
from videotrain_trainer.data.buckets import Window
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.decode_ahead import DecodeAhead
from videotrain_trainer.data.manifest import LATENT_SCHEMA, read_table
from videotrain_trainer.data.pixels import crop_window
from videotrain_trainer.data.video import Cut, read_covering, read_cuts
from videotrain_trainer.networks.weights import open_weights
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks import encode
from videotrain_trainer.tasks.encode_clips import ClipEncoder, texts_of
from videotrain_trainer.tasks.encode_plan import EncodePlan


@pytest.fixture
def config(store, storage, tmp_path):
    """An encode stage of six clips of noise, 20 frames each, in units of one clip."""
    made = encode_config(storage.uri, "encode").model_copy(update={"storage": storage})
    curate_noise(store, f"{storage.uri}/clips", tmp_path, 6)
    first_autoencoder(store, made)
    return made


def test_one_decode_and_one_pass_per_text_and_no_byte_that_nobody_reads(store, config, make_context, monkeypatch):
    opened: Counter[str] = Counter()
    whole = video._opened
    monkeypatch.setattr(video, "_opened", lambda source: (opened.update(["clip"]), whole(source))[1])
    assert encode.run(make_context(config)) == "completed"
    rows = read_table(store, layout.latent_manifest(config.paths.output), LATENT_SCHEMA).to_pylist()
    assert len(rows) == 6 * 4  # two pictures, and a video at either size
    assert opened["clip"] == 6
    read = sum(row["length"] for row in rows)
    stored = sum(found.size for found in store.list(f"{config.paths.output}/shards"))
    # A tar has a header and padding for each member, and two blocks at its end: nothing beside a sample of megabytes.
    assert read < stored <= read + 1024 * (len(rows) + 6)


def test_texts_are_encoded_once_each(store, config):
    plan, weights = EncodePlan(READERS, 32, 4), open_weights(config.paths.autoencoder_weights, store=store)
    encoder = ClipEncoder(config, plan, store, weights, torch.device("cpu"), None)
    clips = ClipTable(store, config.paths.clips).clips(range(6))
    texts = {text for clip in clips for sample in plan.samples(clip) for _, text in texts_of(sample, sample.styles)}
    assert len(list(encoder.samples(encoder.announce(clips), lambda _: None))) == 24
    encoder.close()
    assert encoder.meter.texts == len(texts) == 12  # with rate and motion, and without


def test_clips_that_are_encoded_together_are_what_each_is_alone(store, config):
    """As a GPU does it. Products over other batches round otherwise: a part in 2^8 of bfloat16, and one step more."""
    plan, weights = EncodePlan(READERS, 32, 4), open_weights(config.paths.autoencoder_weights, store=store)
    clips = ClipTable(store, config.paths.clips).clips(range(6))
    found = []
    for at_once in (0, 4 * 16 * 64 * 64):
        encoder = ClipEncoder(config, plan, store, weights, torch.device("cpu"), None, at_once)
        announced = encoder.announce(clips)
        found.append({one.sample.uid: one.tensors for one in encoder.samples(announced, lambda _: None)})
        encoder.close()
    alone, together = found
    assert alone.keys() == together.keys()
    for uid, tensors in alone.items():
        for name, tensor in tensors.items():
            other = together[uid][name].float()
            assert (tensor.float() - other).abs().max() <= 2**-7 * tensor.float().abs().max(), (uid, name)


def test_cuts_are_the_pixels_of_the_whole_clip(tmp_path, paint_video, texture):
    path = paint_video(tmp_path / "clip.mp4", 30, texture(2))
    cuts = [Cut(range(1), (32, 64)), Cut(range(3, 23, 2), (64, 64)), Cut(range(5, 9), (32, 64))]
    for cut, pixels in zip(cuts, read_cuts(path, cuts), strict=True):
        window = Window(cut.frames.start, len(cut.frames), cut.frames.step)
        expected = crop_window(read_covering(path, cut.size), window, cut.size, (0.5, 0.5))
        found = torch.from_numpy(pixels).float().permute(3, 0, 1, 2) / 127.5 - 1.0
        assert torch.equal(found, expected)
    with pytest.raises(video.Unreadable, match="frame 30 is wanted, and 30 frames could be decoded"):
        read_cuts(path, [Cut(range(29, 31), (32, 32))])


def test_decoding_goes_ahead_as_far_as_bytes_allow():
    ahead: DecodeAhead[int] = DecodeAhead(threads=2, budget=100)
    for number, size in enumerate((60, 30, 30, 500, 10)):
        ahead.put(size, lambda number=number: number)
    assert ahead.held == 90
    held = []
    for number in range(5):
        assert ahead.take() == number
        held.append(ahead.held)
    assert held == [60, 30, 500, 10, 0]  # what is larger than the budget is alone
    ahead.close()


def test_the_manifest_is_read_by_ranges_and_damage_is_noticed(store, config):
    table = ClipTable(store, config.paths.clips)
    assert len(table) == 6
    assert [clip["uid"] for clip in table.clips(range(2, 5))] == ["02", "03", "04"]
    uri = layout.clip_manifest(config.paths.clips)
    data = store.get(uri)
    assert ClipTable(store, config.paths.clips).identity == table.identity
    noticed = 0
    for bit in random.Random(4).sample(range(8 * len(data)), 30):
        harmed = bytearray(data)
        harmed[bit // 8] ^= 1 << bit % 8
        store.put(uri, bytes(harmed))
        try:
            again = ClipTable(store, config.paths.clips)
            assert again.clips(range(6)) == table.clips(range(6)) or again.identity != table.identity
        except Exception as error:
            noticed += uri in str(error)
    assert noticed


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize(
    ("what", "when"),
    [
        ("/shards/", "behind"),
        ("/units/", "before"),
        ("/parts/", "before"),
        ("/index/", "before"),
        ("/manifest.parquet", "before"),
        ("/manifest.parquet", "behind"),
    ],
)
def test_whatever_write_it_is_killed_at_every_clip_is_there_once(
    store, storage, config, make_context, monkeypatch, what, when
):
    """The process ends at a write of each kind; another world of the next generation goes on."""
    put, seen = ObjectStore.put, Counter()

    def deadly(self, uri: str, data, only_if_absent: bool = False) -> str:
        mine = uri.startswith(f"{config.paths.output}{what}")
        seen.update(["write"] if mine else [])
        if mine and seen["write"] == 1 and when == "before":
            raise Killed
        etag = put(self, uri, data, only_if_absent)
        if mine and seen["write"] == 1:
            raise Killed
        return etag

    monkeypatch.setattr(ObjectStore, "put", deadly)
    with pytest.raises(Killed):
        encode.run(make_context(config))
    assert encode.run(make_context(config, generation=2)) == "completed"
    rows = read_table(store, layout.latent_manifest(config.paths.output), LATENT_SCHEMA).to_pylist()
    assert len({row["uid"] for row in rows}) == len(rows) == 6 * 4
    shards = {
        found.uri.removeprefix(f"{config.paths.output}/") for found in store.list(f"{config.paths.output}/shards")
    }
    assert shards == {row["shard"] for row in rows}
