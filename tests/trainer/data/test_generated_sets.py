"""Generated sets are as the product would write them: the index of their catalogue is the one that was generated."""

import importlib.util
from pathlib import Path

import pytest

from videotrain_trainer.data.index_writer import read_catalogue, write_index
from videotrain_trainer.data.sample_index import open_index

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "generated_sets.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("generated_sets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_of_a_generated_catalogue_is_the_generated_index(script, store, tmp_path):
    prefix = tmp_path.as_uri()
    script.generate(store, prefix, 20_000, 7, catalogue=True)
    generated = open_index(store, prefix, None)
    table = read_catalogue(store, prefix)
    written = write_index(store, f"{prefix}/again", table, None)
    assert generated.samples == table.num_rows == 20_000
    assert [bucket.info for bucket in generated.buckets] == written.buckets
    rows = {row["uid"]: row for row in table.slice(0, 50).to_pylist()}
    bucket = next(b for b in generated.buckets if b.info.bucket == table.column("bucket")[0].as_py())
    for number, (uid, row) in enumerate(rows.items()):
        place = bucket.place(number)
        assert (place.uid, place.shard, place.offset, place.length) == (uid, row["shard"], row["offset"], row["length"])


def test_samples_of_a_shard_lie_one_behind_the_other(script):
    columns = script.bucket_columns(3, 50_000)
    assert len(columns.shards) > 1, "enough rows for several shards"
    after = columns.offset[1:] == columns.offset[:-1] + columns.length[:-1]
    begins = columns.offset[1:] == 0
    assert (after | begins).all() and begins.sum() == len(columns.shards) - 1
    assert (columns.shard[1:] - columns.shard[:-1])[begins].tolist() == [1] * int(begins.sum())
