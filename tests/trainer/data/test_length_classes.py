"""Captions of one length class share batches, where padding is not attended to; the order stays arithmetic."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from support.training_worlds import commit_of, final_weights, run_world, store, train_config, trained_ids

from videotrain_api.config.text_classes import text_class
from videotrain_api.resource.stages import Bucket, ParallelLayout
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.manifest import LATENT_SCHEMA, to_parquet
from videotrain_trainer.data.sets import EncodedSetInfo, open_latents, set_info_uri
from videotrain_trainer.data.shards import ShardWriter

ROW = Bucket(resolution="64px", frames=8, batch_size=2)
LENGTHS = [20, 96, 97, 150, 160, 161, 200, 30, 40, 256, 257, 300]
"""Tokens of the captions, padding not counted."""
LONGEST, STORED = 300, 300


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A set with captions of many lengths, some of them with features of padding behind."""
    folder = tmp_path_factory.mktemp("set")
    uri, rows = f"file://{folder}/latents", []
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder / "shard.tar") as shard:
        for number, tokens in enumerate(LENGTHS):
            stored = STORED if number % 2 else tokens
            context = torch.randn(stored, 16, generator=generator)
            picture = torch.randn(4, 1, 2, 2, generator=generator)
            tensors = {
                "latent": torch.randn(4, 2, 2, 2, generator=generator),
                "cond_first": picture,
                "cond_last": picture,
            }
            tensors |= {"context.fps-motion": context, "pooled.fps-motion": torch.randn(8, generator=generator)}
            member = shard.add(f"s{number:02d}", {name: value.bfloat16() for name, value in tensors.items()})
            rows.append(
                dict.fromkeys(LATENT_SCHEMA.names, 0)
                | {"uid": member.name, "clip": f"clip-{member.name}", "row": "64px/8f", "bucket": "64px/8f/1:1"}
                | {"offset": member.offset, "length": member.length, "crc32c": member.crc32c, "shard": "shards/a.tar"}
                | {"latent_frames": 2, "latent_height": 2, "latent_width": 2, "fps": 12.0, "text_tokens": tokens}
                | {"caption": "c", "source": "x"}
            )
    store().put(f"{uri}/shards/a.tar", folder / "shard.tar")
    info = EncodedSetInfo(
        samples=len(rows),
        manifest_hash="0",
        rows=["64px/8f"],
        prompts=["fps-motion"],
        latent_channels=4,
        spatial_compression=32,
        context_dim=16,
        pooled_dim=8,
        text_encoder="bytes",
        autoencoder_weights="s3://x",
    )
    store().put(set_info_uri(uri), sealed_json(info.to_wire()))
    store().put(f"{uri}/manifest.parquet", to_parquet(rows, LATENT_SCHEMA))
    return uri


def config_of(folder, latents, **changes):
    config = train_config(folder, latents, buckets=[ROW], **changes)
    return config.model_copy(update={"text_encoder": config.text_encoder.model_copy(update={"max_tokens": LONGEST})})


@pytest.mark.parametrize(
    ("tokens", "longest", "size"),
    [
        *[(1, 512, 96), (96, 512, 96), (97, 512, 160), (161, 512, 256), (257, 512, 512), (512, 512, 512)],
        *[(600, 1024, 1024), (5, 64, 64), (64, 64, 64), (90, 96, 96), (100, 120, 120), (300, 300, 300)],
    ],
)
def test_a_caption_belongs_to_the_next_class_and_the_last_one_is_the_longest_caption(tokens, longest, size):
    assert text_class(tokens, longest) == size


def test_a_length_class_is_part_of_the_bucket_key_only_where_padding_is_not_attended_to(tmp_path, latents):
    one = open_latents(store(), config_of(tmp_path, latents)).plan.buckets
    assert [(bucket.name, bucket.size) for bucket in one] == [("64px/8f/1:1", 12)]
    classes = open_latents(store(), config_of(tmp_path, latents, attend_padding=False)).plan.buckets
    assert {bucket.name: bucket.size for bucket in classes} == {
        "64px/8f/1:1/96t": 4,
        "64px/8f/1:1/160t": 3,
        "64px/8f/1:1/256t": 3,
        "64px/8f/1:1/300t": 2,
    }


@pytest.mark.parametrize("attend", [True, False])
def test_text_is_padded_to_its_class_or_cut_there_and_nothing_of_a_caption_is_lost(tmp_path, latents, attend):
    data = open_latents(store(), config_of(tmp_path, latents, attend_padding=attend))
    loader = LatentLoader(store(), data, data.plan.start(), [range(4)] * len(data.plan.buckets))
    seen = set()
    for order in islice(data.plan.walk(data.plan.start()), 12):
        for number in range(4):
            batch = loader.fetch(order, number)
            length = batch.context_BLD.shape[1]
            assert length == (LONGEST if attend else int(order.bucket.rsplit("/", 1)[1][:-1]))
            assert batch.text_tokens == tuple(LENGTHS[int(key.uid[1:])] for key in batch.keys)
            assert max(batch.text_tokens) <= length
            for key, context_LD in zip(batch.keys, batch.context_BLD, strict=True):
                index = int(key.uid[1:])
                stored = min(length, STORED if index % 2 else LENGTHS[index])
                assert context_LD[:stored].abs().sum(dim=1).all()
                assert not context_LD[stored:].any()
                seen.add(index)
    loader.close()
    assert seen == set(range(12))


@pytest.mark.numeric
def test_worlds_of_any_size_train_on_the_same_classes_in_the_same_order(tmp_path, latents):
    found = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        layout = ParallelLayout(micro_batches_per_step=2)
        result = run_world(folder, config_of(folder, latents, attend_padding=False, parallel=layout, steps=6), size)
        assert result.outcomes == ["completed"] * size, result.outcomes
        found.append((trained_ids(folder, commit_of(folder, 6)), [s.tokens for s in result.steps], result.steps))
        assert final_weights(folder)
    assert found[0][:2] == found[1][:2]
    for record in found[0][2]:
        length = int(record.bucket.rsplit("/", 1)[1][:-1])
        assert record.tokens == record.samples * (2 * 2 * 2 + length)
        assert record.useful_flops < record.model_flops
