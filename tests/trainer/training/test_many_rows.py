"""Whole worlds on a set of very many rows: real index files, of which many rows share one of the few samples there are.

How long a start takes is printed, not bounded.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.at_length import at_length
from support.training_worlds import SIZES, Plan, commit_of, make_latents, run_world, store, train_config, trained_ids

from videotrain_api.resource.stages import Bucket, ParallelLayout
from videotrain_api.storage import layout
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.data.index_writer import BucketColumns, publish_index, write_bucket
from videotrain_trainer.data.manifest import LATENT_SCHEMA, SCORES, read_table
from videotrain_trainer.data.sets import read_set_info, set_info_uri

NAME, STEPS, LEAVES_AT = "64px/8f/1:1", 6, 3


def bucket_of(rows: int, latents: str) -> BucketColumns:
    """So many rows with uids of their own, in turns at the places of the bucket's samples."""
    count, _, latent = SIZES[NAME]
    table = read_table(store(), layout.latent_manifest(latents), LATENT_SCHEMA).to_pylist()
    places = [row for row in table if row["bucket"] == NAME]
    clip = np.zeros((rows, 2), ">u8")
    clip[:, 0], number = np.arange(rows), np.arange(rows) % count
    return BucketColumns(
        bucket=NAME,
        latent=latent,
        clip=clip.view("V16").reshape(rows),
        suffix=np.zeros(rows, np.uint8),
        suffixes=["-0"],
        uid=None,
        kind=np.zeros(rows, np.uint8),
        kinds=[("64px/8f", ["64px/8f"], None)],
        shard=np.zeros(rows, np.int64),
        shards=[places[0]["shard"]],
        offset=np.array([place["offset"] for place in places])[number],
        length=np.array([place["length"] for place in places])[number],
        crc32c=np.array([place["crc32c"] for place in places])[number],
        text_tokens=np.full(rows, 6, np.uint16),
        scores={score: np.ones(rows) for score in SCORES[:1]},
    )


@pytest.mark.parametrize("rows", [at_length(10_000_000)])
@pytest.mark.timeout(1200)
def test_a_world_trains_and_goes_on_in_another_size(tmp_path, rows):
    latents = make_latents(tmp_path)
    publish_index(store(), latents, [write_bucket(store(), latents, bucket_of(rows, latents))], None)
    info = read_set_info(store(), latents).model_copy(update={"samples": rows, "rows": ["64px/8f"]})
    store().put(set_info_uri(latents), sealed_json(info.to_wire()))
    parallel = ParallelLayout(micro_batches_per_step=4)
    table = [Bucket(resolution="64px", frames=8, batch_size=2)]
    config = train_config(tmp_path, latents, steps=STEPS, buckets=table, parallel=parallel)
    left = run_world(tmp_path, config, 2, Plan(drain_during=LEAVES_AT))
    assert left.outcomes == ["drained"] * 2, left.outcomes
    ended = run_world(tmp_path, config, 1, Plan(generation=2))
    assert ended.outcomes == ["completed"], ended.outcomes
    assert [step.step for result in (left, ended) for step in result.steps] == list(range(1, STEPS + 1))
    ids = trained_ids(tmp_path, commit_of(tmp_path, STEPS))
    assert len(set(ids)) == len(ids) == 8 * STEPS
    assert all(int(uid[:16], 16) < rows and uid.endswith("-0") for uid in ids)
    for result in (left, ended):
        print(f"{rows:,} rows: {result.started.phases_us}")
