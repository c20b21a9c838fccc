"""A stage that trains on several sources: encoded sets of their own, or one set that was made of several folders."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from support.training_worlds import (
    Plan,
    _info,
    commit_of,
    make_clips,
    make_latents,
    run_world,
    store,
    train_config,
    trained_ids,
)
from support.training_worlds import autoencoder_config as vae_config

from videotrain.report.order_check import check_order
from videotrain_api.resource.sources import Source, SourceWeights
from videotrain_api.resource.stages import Validation
from videotrain_api.resource.trainrun import Dataset
from videotrain_api.storage import layout
from videotrain_trainer import cli
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.index_writer import read_catalogue, write_index
from videotrain_trainer.data.loader import LatentLoader
from videotrain_trainer.data.manifest import CLIP_SCHEMA, LATENT_SCHEMA, read_table, to_parquet
from videotrain_trainer.data.sample_index import open_index
from videotrain_trainer.data.sets import _buckets_of, open_clips, open_latents, read_set_info, set_info_uri
from videotrain_trainer.errors import DataError
from videotrain_trainer.node_cache import NodeCache

SIZES = {
    "film": {"64px/8f/1:1": (3, 2, (2, 2, 2))},
    "game": {"64px/8f/1:1": (11, 2, (2, 2, 2)), "64px/16f/1:1": (5, 1, (4, 2, 2))},
    "own": {"64px/16f/1:1": (9, 1, (4, 2, 2))},
    "stock": {"64px/8f/1:1": (20, 2, (2, 2, 2)), "64px/16f/1:1": (2, 1, (4, 2, 2))},
    "web": {"64px/8f/1:1": (1, 2, (2, 2, 2)), "64px/16f/1:1": (1, 1, (4, 2, 2))},
}
WEIGHTS = {"film": 1.0, "game": 0.5, "own": 2.5, "stock": 4.0, "web": 0.1}


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("five")
    for name in SIZES:
        (folder / name).mkdir()
    sets = {name: make_latents(folder / name, sizes=sizes) for name, sizes in SIZES.items()}
    return [Source(name=name, form="latents", uri=uri, weight=WEIGHTS[name]) for name, uri in sets.items()]


def five_config(folder, five, **changes):
    config = train_config(folder, five[0].uri, **changes)
    return config.model_copy(update={"dataset": Dataset(sources=five)})


def folders_of(*names: str, **weights: float) -> Dataset:
    """Folders that were curated and encoded already."""
    return Dataset(sources=[Source(name=name, uri=f"s3://raw/{name}", weight=weights.get(name)) for name in names])


def test_the_loader_reads_each_sample_from_the_set_that_it_is_of(five, tmp_path):
    latents = open_latents(store(), five_config(tmp_path, five))
    alone = {}
    for source in five:
        data = open_latents(store(), train_config(tmp_path, source.uri))
        uids = {
            (bucket.name, data.uid(n, i)): (n, i)
            for n, bucket in enumerate(data.plan.buckets)
            for i in range(bucket.size)
        }
        alone[source.name] = (LatentLoader(store(), data, data.plan.start(), [[]] * len(data.plan.buckets)), uids)
    loader = LatentLoader(store(), latents, latents.plan.start(), [[0, 1, 2, 3]] * len(latents.plan.buckets))
    seen = Counter()
    for order in islice(latents.plan.walk(latents.plan.start()), 40):
        for number, indices in enumerate(order.micro_batches):
            batch = loader.fetch(order, number)
            for place, index in enumerate(indices):
                name = latents.plan.sources[latents.plan.source_of(order.bucket_index, index)]
                other, uids = alone[name]
                key = batch.keys[place]
                assert torch.equal(
                    other._load(*uids[order.bucket, key.uid], key).tensors["latent"], batch.latent_BCTHW[place]
                )
                seen[name] += 1
    for each in (loader, *(other for other, _ in alone.values())):
        each.close()
    assert set(seen) == set(SIZES)


def test_one_source_gives_the_order_of_its_set_to_the_last_bit(five, tmp_path):
    plain = open_latents(store(), train_config(tmp_path, five[1].uri))
    config = train_config(tmp_path, five[1].uri)
    alone = open_latents(store(), config.model_copy(update={"dataset": Dataset(sources=[five[1]])}))
    assert alone.plan == plain.plan and alone.plan.fingerprint == plain.plan.fingerprint
    assert alone.plan.start().to_json() == plain.plan.start().to_json()


def test_without_weights_every_sample_is_as_likely_as_any_other(five, tmp_path):
    unweighed = [source.model_copy(update={"weight": None}) for source in five]
    plan = open_latents(store(), five_config(tmp_path, unweighed)).plan
    state = plan.start()
    while state.step < 400:
        state = plan.advance(state)
    passes = [
        taken / size
        for number, bucket in enumerate(plan.buckets)
        for taken, size in zip(plan.taken(state, number), bucket.parts, strict=True)
        if size
    ]
    assert max(passes) - min(passes) < 1.5 < min(passes)


def test_worlds_that_are_killed_and_resized_train_on_each_source_once_per_pass(five, tmp_path):
    pieces = [
        SourceWeights(weights=WEIGHTS, until_step=5),
        SourceWeights(weights=dict.fromkeys(WEIGHTS, 1.0) | {"web": 0.0}),
    ]
    config = five_config(tmp_path, five, steps=10, source_weights=pieces)
    killed = run_world(tmp_path, config, 2, Plan(kill_after=8))
    assert killed.codes != [0, 0]
    assert run_world(tmp_path, config, 1, Plan(generation=2)).outcomes == ["completed"]
    latents, commit = open_latents(store(), config), commit_of(tmp_path, 10)
    expected = [
        latents.uid(order.bucket_index, index)
        for order in islice(latents.plan.walk(latents.plan.start()), 10)
        for batch in order.micro_batches
        for index in batch
    ]
    assert trained_ids(tmp_path, commit) == expected
    found = check_order(store(), layout.checkpoint_commit(config.paths.output, 10))
    assert (found.repeated, found.lost, found.problems) == (0, 0, [])
    assert sum(found.sources.values()) == found.consumed == len(expected) and len(found.sources) > 3
    assert commit.data_cursor["since"]["step"] == 5


def mixed_set(folder, sources=("film", "own")) -> str:
    """One set that an encode stage has made of two folders."""
    uri = make_latents(folder, sizes={"64px/8f/1:1": (10, 2, (2, 2, 2)), "64px/16f/1:1": (7, 1, (4, 2, 2))})
    rows = read_table(store(), layout.latent_manifest(uri), LATENT_SCHEMA).to_pylist()
    for number, row in enumerate(rows):
        row["source"] = f"{sources[number % 3 % len(sources)]}/clip {number}.mp4"
    data = to_parquet(rows, LATENT_SCHEMA)
    store().put(layout.latent_manifest(uri), data)
    info = _info(rows).model_copy(update={"sources": list(sources)})
    store().put(set_info_uri(uri), sealed_json(info.to_wire()))
    return uri


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_a_set_of_several_folders_is_told_apart_by_source(tmp_path, indexed, cached):
    uri = mixed_set(tmp_path)
    if indexed:
        assert cli.main(["index", uri]) == 0
        assert {kind.source for b in open_index(store(), uri, None).buckets for kind in b.info.kinds} == {"film", "own"}
    config = train_config(tmp_path, uri, validation=Validation(share=0.2))
    config = config.model_copy(update={"dataset": folders_of("film", "own", film=3.0, own=1.0)})
    rows = {row["uid"]: row for row in read_table(store(), layout.latent_manifest(uri), LATENT_SCHEMA).to_pylist()}
    cache = NodeCache(tmp_path / "cache", store()) if cached else None
    for _ in range(2):  # the second time from what the node kept
        latents = open_latents(store(), config, cache)
        assert latents.plan.sources == ("film", "own")
        for number, bucket in enumerate(latents.plan.buckets):
            for index in range(bucket.size):
                name = latents.plan.sources[latents.plan.source_of(number, index)]
                assert rows[latents.uid(number, index)]["source"].startswith(f"{name}/")
        assert latents.held_out
    whole = sum(bucket.size for bucket in latents.plan.buckets) + len(latents.held_out)
    assert whole == len(rows)


def test_a_set_of_other_sources_and_a_source_that_gives_nothing_are_refused(tmp_path):
    uri = mixed_set(tmp_path)
    config = train_config(tmp_path, uri)
    other = config.model_copy(update={"dataset": folders_of("film", "web")})
    with pytest.raises(DataError, match=r"was made of sources \['film', 'own'\], this run has \['film', 'web'\]"):
        open_latents(store(), other)
    store().put(
        set_info_uri(uri),
        sealed_json(read_set_info(store(), uri).model_copy(update={"sources": ["film", "own", "web"]}).to_wire()),
    )
    with pytest.raises(DataError, match=r"finds no sample in source 'web', which has a weight"):
        open_latents(
            store(), config.model_copy(update={"dataset": folders_of("film", "own", "web", film=1, own=1, web=1)})
        )
    pieces = [SourceWeights(weights={"film": 1, "own": 2, "web": 0})]
    spared = train_config(tmp_path, uri, source_weights=pieces)
    spared = spared.model_copy(update={"dataset": folders_of("film", "own", "web", film=1, own=1, web=1)})
    assert open_latents(store(), spared).plan.phases[0].weights == (1.0, 2.0, 0.0)


def test_a_catalogue_whose_clips_are_of_no_known_source_is_refused(tmp_path):
    uri = make_latents(tmp_path)
    table = read_catalogue(store(), uri, ["film"])
    with pytest.raises(DataError, match=r"column source: \['synthetic'\] are none of the sources \['film'\]"):
        write_index(store(), uri, table, None, ["film"])


def test_clips_of_an_autoencoder_stage_are_weighed_by_source(tmp_path):
    uri = make_clips(tmp_path, count=6)
    rows = read_table(store(), layout.clip_manifest(uri), CLIP_SCHEMA).to_pylist()
    for number, row in enumerate(rows):
        row["source"] = f"{'film' if number < 2 else 'own'}/{row['source']}"
    store().put(layout.clip_manifest(uri), to_parquet(rows, CLIP_SCHEMA))
    config = vae_config(tmp_path, uri).model_copy(update={"dataset": folders_of("film", "own", film=9, own=1)})
    clips = open_clips(store(), config)
    counts = Counter(
        clips.row(order.bucket_index, i)["source"].split("/")[0]
        for order in islice(clips.plan.walk(clips.plan.start()), 50)
        for batch in order.micro_batches
        for i in batch
    )
    assert counts == {"film": 90, "own": 10}


def test_sources_stand_in_their_order_also_where_a_group_has_to_be_renamed():
    def group(name, batch, source):
        return SimpleNamespace(name=name, row=SimpleNamespace(batch_size=batch), source=source)

    groups = [group("X", 4, "a"), group("X x2", 2, "a"), group("X", 2, "b")]
    found = _buckets_of(groups, ("a", "b"))
    assert [(name, [one.source for one in mine]) for name, mine in found.items()] == [
        ("X", ["a"]),
        ("X x2", ["a", "b"]),
    ]
