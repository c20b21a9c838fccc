from __future__ import annotations

import threading
import time
from itertools import islice

import pytest
import torch
from support.storage_proxy import ThreadedProxy

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.cost.data_wait import LOADER_THREADS, MICRO_BATCHES_AHEAD, Latency, Reading, StepLoad, data_wait
from videotrain_api.resource.stages import Bucket, ScoreBounds
from videotrain_api.storage import layout
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.buckets import row_name
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.manifest import LATENT_SCHEMA, to_parquet
from videotrain_trainer.data.sets import EncodedSetInfo, open_latents, set_info_uri
from videotrain_trainer.data.shards import ShardWriter
from videotrain_trainer.errors import DataError
from videotrain_trainer.storage import ObjectStore

CHANNELS = AUTOENCODERS["dc-ae-tiny"].latent_channels
LONG = Bucket(resolution="64px", frames=16, batch_size=2)
SHORT = Bucket(resolution="64px", frames=8, batch_size=3)
SIZES = {"64px/16f/1:1": (LONG, 4, 9), "64px/8f/1:1": (SHORT, 2, 5)}


@pytest.fixture
def encoded(store, storage, tmp_path):
    """An encoded set of 14 clips in two buckets; returns its prefix, rows and where each sample lies."""
    prefix, rows = f"{storage.uri}/latents", []
    for bucket, (row, frames, number) in SIZES.items():
        with ShardWriter(tmp_path / "shard.tar") as writer:
            for n in range(number):
                uid = f"{frames}-{n:02d}"
                latent = torch.full((CHANNELS, frames, 2, 2), float(n))
                picture = torch.full((CHANNELS, 1, 2, 2), float(n))
                tensors = {"latent": latent, "cond_first": picture, "cond_last": picture + 0.5}
                tensors |= {"context.fps-motion": torch.full((n + 1, 16), 1.0), "pooled.fps-motion": torch.ones(8)}
                member = writer.add(uid, {key: value.bfloat16() for key, value in tensors.items()})
                rows.append(
                    dict.fromkeys(LATENT_SCHEMA.names, 0)
                    | {"uid": uid, "clip": f"clip-{uid}", "row": row_name(row), "bucket": bucket, "source": "x.mp4"}
                    | {"offset": member.offset, "length": member.length, "crc32c": member.crc32c}
                    | {"latent_frames": frames, "latent_height": 2, "latent_width": 2, "fps": 12.0}
                    | {"caption": f"clip {n}", "motion": float(n)}
                )
        name = f"shards/{writer.object_name(bucket, 0)}"
        store.put(f"{prefix}/{name}", tmp_path / "shard.tar")
        for made in rows:
            made["shard"] = made["shard"] or name
    info = EncodedSetInfo(
        samples=len(rows),
        manifest_hash="0",
        rows=[row_name(LONG), row_name(SHORT)],
        prompts=["fps-motion"],
        latent_channels=CHANNELS,
        spatial_compression=32,
        context_dim=16,
        pooled_dim=8,
        text_encoder="bytes",
        autoencoder_weights="s3://x",
    )
    store.put(set_info_uri(prefix), sealed_json(info.to_wire()))
    store.put(layout.latent_manifest(prefix), to_parquet(rows, LATENT_SCHEMA))
    return prefix, rows


def ids(store, latents, world: int, steps: int) -> list[list[str]]:
    """Sample ids of each step as the ranks of a world get them."""
    plan, state = latents.plan, latents.plan.start()
    orders = list(islice(plan.walk(state), steps))
    found = [[()] * plan.micro_batches for _ in orders]
    for rank in range(world):
        mine = range(rank, plan.micro_batches, world)
        loader = LatentLoader(store, latents, state, [mine] * len(plan.buckets))
        for number, order in enumerate(orders):
            for micro_batch in mine:
                batch = loader.fetch(order, micro_batch)
                found[number][micro_batch] = tuple(key.uid for key in batch.keys)
                assert [key.bucket for key in batch.keys] == [order.bucket] * len(batch.keys)
                assert [key.position for key in batch.keys] == list(order.positions[micro_batch])
        loader.close()
    return [[uid for micro_batch in step for uid in micro_batch] for step in found]


def test_batches_hold_the_samples_that_the_order_names(store, encoded, make_config, train_task):
    latents = open_latents(store, make_config(train_task([LONG, SHORT]), latents=encoded[0]))
    assert [(b.name, b.size, b.batch_size) for b in latents.plan.buckets] == [
        ("64px/16f/1:1", 9, 2),
        ("64px/8f/1:1", 5, 3),
    ]
    loader = LatentLoader(store, latents, latents.plan.start(), [[0, 1]] * 2)
    for order in islice(latents.plan.walk(latents.plan.start()), 6):
        for micro_batch in (0, 1):
            batch = loader.fetch(order, micro_batch)
            numbers = [int(key.uid.split("-")[1]) for key in batch.keys]
            frames = 4 if order.bucket == "64px/16f/1:1" else 2
            assert batch.latent_BCTHW.shape == (len(numbers), CHANNELS, frames, 2, 2)
            assert batch.latent_BCTHW.dtype == torch.bfloat16
            assert batch.latent_BCTHW[:, 0, 0, 0, 0].tolist() == numbers
            assert (batch.cond_last_BC1HW - batch.cond_first_BC1HW).float().unique().tolist() == [0.5]
            assert batch.context_BLD.shape == (len(numbers), 48, 16)
            assert batch.context_BLD[:, :, 0].sum(dim=1).tolist() == [n + 1 for n in numbers]
            assert batch.pooled_BP.shape == (len(numbers), 8)
    loader.close()


def test_worlds_of_every_size_train_on_the_same_samples(store, encoded, make_config, train_task):
    latents = open_latents(store, make_config(train_task([LONG, SHORT], micro_batches=4), latents=encoded[0]))
    alone = ids(store, latents, 1, 7)
    assert all(ids(store, latents, world, 7) == alone for world in (2, 3, 4, 5))


def test_micro_batches_can_be_asked_for_in_any_order_and_again(store, encoded, make_config, train_task):
    latents = open_latents(store, make_config(train_task([LONG, SHORT], micro_batches=3), latents=encoded[0]))
    orders = list(islice(latents.plan.walk(latents.plan.start()), 4))
    loader = LatentLoader(store, latents, latents.plan.start(), [[0, 2]] * 2)
    last = loader.fetch(orders[3], 2).keys
    again = loader.fetch(orders[0], 1).keys
    assert last == loader.fetch(orders[3], 2).keys
    assert [key.position for key in again] == list(orders[0].positions[1])
    loader.close()


def damage(store, prefix: str, row: dict) -> None:
    uri = f"{prefix}/{row['shard']}"
    data = bytearray(store.get(uri))
    data[row["offset"] + row["length"] // 2] ^= 4
    store.put(uri, bytes(data))


def test_a_damaged_sample_is_replaced_by_the_same_spare_in_every_world_and_told(
    store, encoded, make_config, train_task
):
    prefix, rows = encoded
    latents = open_latents(store, make_config(train_task([LONG, SHORT], micro_batches=4), latents=prefix))
    whole = ids(store, latents, 1, 6)
    damage(store, prefix, rows[3])
    damaged = ids(store, latents, 1, 6)
    assert damaged == ids(store, latents, 3, 6)
    changed = [(a, b) for x, y in zip(whole, damaged, strict=True) for a, b in zip(x, y, strict=True) if a != b]
    assert changed
    assert {was for was, _ in changed} == {rows[3]["uid"]}
    loader = LatentLoader(store, latents, latents.plan.start(), [range(4)] * 2)
    for order in islice(latents.plan.walk(latents.plan.start()), 6):
        for micro_batch in range(4):
            loader.fetch(order, micro_batch)
    (skipped,) = loader.skipped
    loader.close()
    assert skipped.uid == rows[3]["uid"]
    assert skipped.stand_in in {now for _, now in changed}
    assert "does not fit its checksum" in skipped.reason


def test_damage_beyond_the_limit_ends_the_stage_and_names_the_object(store, encoded, make_config, train_task):
    prefix, rows = encoded
    for row in rows[:3]:
        damage(store, prefix, row)
    latents = open_latents(store, make_config(train_task([LONG]), latents=prefix))
    loader = LatentLoader(store, latents, latents.plan.start(), [[0, 1]] * 2)
    orders = islice(latents.plan.walk(latents.plan.start()), 5)
    with pytest.raises(DataError, match=r"damaged.*shards/64px-16f-1x1"):
        _ = [loader.fetch(order, micro_batch) for order in orders for micro_batch in (0, 1)]
    loader.close()


def test_only_selected_clips_are_trained_on_and_the_order_knows_it(store, encoded, make_config, train_task):
    prefix, _ = encoded
    everything = open_latents(store, make_config(train_task([LONG, SHORT]), latents=prefix))
    bounds = [ScoreBounds(score="motion", min=2.0, max=4.0)]
    some = open_latents(store, make_config(train_task([LONG, SHORT], select=bounds), latents=prefix))
    assert [bucket.size for bucket in some.plan.buckets] == [3, 3]
    assert [[some.uid(bucket, n)[-2:] for n in range(3)] for bucket in (0, 1)] == [["02", "03", "04"]] * 2
    with pytest.raises(ValueError, match="another data set"):
        some.plan.check(everything.plan.start())


def test_a_stage_whose_needs_the_set_does_not_meet_is_told_what_is_there(store, encoded, make_config, train_task):
    prefix, _ = encoded
    other = Bucket(resolution="128px", frames=16, batch_size=1)
    with pytest.raises(DataError, match=r"stage's buckets are \['128px/16f'\], the set was encoded for \['64px/16f'"):
        open_latents(store, make_config(train_task([other]), latents=prefix))
    nothing = [ScoreBounds(score="motion", min=99.0)]
    with pytest.raises(DataError, match=r"0 after train\.select"):
        open_latents(store, make_config(train_task([LONG], select=nothing), latents=prefix))
    with pytest.raises(DataError, match="needs text features for 'fps'"):
        open_latents(store, make_config(train_task([LONG], motion_score=False), latents=prefix))
    with pytest.raises(DataError, match="no encode stage has finished there"):
        open_latents(store, make_config(train_task([LONG]), latents=f"{prefix}-other"))


def test_a_rank_without_micro_batches_waits_for_nothing(store, encoded, make_config, train_task):
    latents = open_latents(store, make_config(train_task([LONG]), latents=encoded[0]))
    LatentLoader(store, latents, latents.plan.start(), [[]]).close()


class Answered:
    """What each sample really took, by its place in the order."""

    def __init__(self, places: dict[tuple[str, int], int]) -> None:
        self.places, self.took, self.lock = places, {}, threading.Lock()

    def seconds(self, rank: int, number: int) -> float:
        return self.took[number]


class TimedLoader(LatentLoader):
    """Notes how long samples take."""

    answered: Answered

    def _load(self, bucket, index, key):
        begun = time.perf_counter()
        sample = super()._load(bucket, index, key)
        with self.answered.lock:
            self.answered.took[self.answered.places[key.bucket, key.position]] = time.perf_counter() - begun
        return sample


def test_a_replay_predicts_what_the_loader_waits(storage, encoded, make_config, train_task):
    """Behind a proxy whose answers are late: what each sample took is given to the replay, the queues are its own."""
    micro_batches, steps = 2, 25
    late = Latency(p50_seconds=0.1, p99_seconds=0.4, stalled_share=0.02, stall_seconds=1.0)
    with ThreadedProxy(storage.endpoint_url) as behind:
        store = ObjectStore.for_storage(storage.model_copy(update={"endpoint_url": behind.proxy.url}))
        config = make_config(train_task([LONG, SHORT], micro_batches=micro_batches), latents=encoded[0])
        latents = open_latents(store, config)
        orders = list(islice(latents.plan.walk(latents.plan.start()), steps + MICRO_BATCHES_AHEAD))
        keys = [(o.bucket, p) for o in orders for m in range(micro_batches) for p in o.positions[m]]
        answered = Answered({key: number for number, key in enumerate(keys)})
        behind.proxy.delay = lambda asked: late.seconds(0, len(behind.proxy.passed)) if "GET" in asked.kind else 0.0
        TimedLoader.answered = answered
        loader = TimedLoader(store, latents, latents.plan.start(), [range(micro_batches)] * 2)
        waits, loads = [], []
        for order in orders[:steps]:
            waited = worked = 0.0
            for micro_batch in range(micro_batches):
                begun = time.perf_counter()
                loader.fetch(order, micro_batch)
                ready = time.perf_counter()
                threading.Event().wait(0.02)  # the step computes meanwhile
                waited, worked = waited + ready - begun, worked + time.perf_counter() - ready
            waits.append(waited)
            samples = len(order.micro_batches[0])
            loads.append(StepLoad(micro_batches=micro_batches, samples=samples, sample_bytes=0, seconds=worked / 2))
        loader.close()
    ranks_own = {"threads": LOADER_THREADS, "ahead": MICRO_BATCHES_AHEAD, "rank_bytes_per_second": float("inf")}
    told = data_wait(loads, 1, Reading(answers=answered, **ranks_own))
    assert sum(waits[1:]) > 0.5, "the store is so slow that there is something to predict"
    # Beside the queues there is collation, and threads wake late on a busy machine: a wait may be a little longer.
    assert told.waited == pytest.approx(sum(waits[1:]), rel=0.25)
    nothing_ahead = data_wait(loads, 1, Reading(answers=answered, **ranks_own | {"ahead": 0}))
    assert nothing_ahead.waited > 1.25 * told.waited, "another loader would be told apart"
