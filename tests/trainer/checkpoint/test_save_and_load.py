from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_worlds import (
    SHAPES,
    CountingStore,
    FakeState,
    load,
    make_store,
    make_writers,
    save,
    whole_values,
)

from videotrain_api.records import CheckpointRecord
from videotrain_api.resource.trainrun import CheckpointPolicy, Storage
from videotrain_trainer.checkpoint import load as load_module
from videotrain_trainer.checkpoint.catalog import find_steps, stored_steps
from videotrain_trainer.checkpoint.commit import AbandonedError
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.checkpoint.load import open_checkpoint
from videotrain_trainer.checkpoint.state import BLOCK_BYTES
from videotrain_trainer.errors import ConfigError, DataError, Fenced
from videotrain_trainer.sharded_state import pack, packed_length
from videotrain_trainer.training.final_tensors import StoredTensors


@pytest.fixture
def prefix(tmp_path):
    return f"file://{tmp_path}/stage"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "stage/checkpoints"


def data_file(folder: Path, step: int, rank: int = 0) -> Path:
    return sorted((folder / f"step-{step:08d}").glob("*.safetensors"))[rank]


@pytest.mark.parametrize(("saved", "loaded"), [(1, 1), (1, 3), (2, 4), (4, 1), (4, 2), (3, 5)])
def test_any_world_loads_what_any_world_saved(prefix, saved, loaded):
    save(make_writers(make_store(), prefix, saved), 10)
    results, states = load(make_store(), prefix, [10], loaded, seed=10)
    assert all(state.is_whole() for state in states)
    assert results[0].manifest.step == 10
    assert results[0].skipped == []


def test_a_state_is_filled_part_by_part(prefix, monkeypatch):
    save(make_writers(make_store(), prefix, 2), 10)
    monkeypatch.setattr(load_module, "PART_ELEMENTS", 99_991)
    _, states = load(make_store(), prefix, [10], 3, seed=10)
    assert all(state.is_whole() for state in states)
    assert max(states[0].lengths) == 99_991


def test_one_vector_of_one_part_at_a_time_is_in_memory(prefix, monkeypatch):
    save(make_writers(make_store(), prefix, 1), 10)
    read, alive, most = load_module.read_vectors, weakref.WeakSet(), 0

    def watched(*arguments):
        nonlocal most
        most = max(most, len(alive))
        vectors = read(*arguments)
        assert len(vectors) == 1
        alive.update(vectors.values())
        return vectors

    monkeypatch.setattr(load_module, "PART_ELEMENTS", 99_991)
    monkeypatch.setattr(load_module, "read_vectors", watched)
    _, states = load(make_store(), prefix, [10], 1, seed=10)
    assert len(states[0].lengths) > 4
    assert most == 0


def test_a_rank_of_another_world_reads_only_the_blocks_that_it_needs(prefix):
    save(make_writers(make_store(), prefix, 2), 10)
    store = CountingStore(Storage(uri="s3://unused-bucket"))
    _, states = load(store, prefix, [10], 4, seed=10)
    needed = sum(4 * len(state.written["master"]) * 4 for state in states)
    # Four ranks read four vectors each; whole blocks waste less than one block at either end of a vector.
    assert needed <= sum(store.ranged) <= needed + 4 * 4 * 2 * BLOCK_BYTES
    single = CountingStore(Storage(uri="s3://unused-bucket"))
    load(single, prefix, [10], 2, seed=10)
    assert sum(single.ranged) == sum(
        min(-(-(start + 4 * packed_length(pack(file.pieces))) // BLOCK_BYTES) * BLOCK_BYTES, file.bytes)
        - start // BLOCK_BYTES * BLOCK_BYTES
        for file in open_checkpoint(single, prefix, 10).index.files
        for start in file.vectors.values()
    )  # vectors are read one after the other, so neighbours read the block that they share twice


def test_files_are_plain_safetensors_that_other_tools_read(prefix, folder):
    save(make_writers(make_store(), prefix, 2), 10)
    for rank in range(2):
        state = FakeState(rank, 2, seed=10)
        stored = load_file(data_file(folder, 10, rank))
        assert {name: values.tolist()[:5] for name, values in stored.items()} == {
            name: state.values(name).tolist()[:5] for name in state.quantities
        }


def test_exported_weights_are_the_moving_average_of_every_parameter(prefix):
    save(make_writers(make_store(), prefix, 3), 10)
    found = open_checkpoint(make_store(), prefix, 10)
    expected = whole_values("ema", SHAPES, 10)
    exported = dict(StoredTensors(make_store(), found, torch.float32))
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == SHAPES
    assert all(exported[name].flatten().equal(expected[name]) for name in SHAPES)


def test_every_rank_records_a_complete_checkpoint(prefix):
    writers = make_writers(make_store(), prefix, 2)
    save(writers, 10)
    records = [writer._reporter.sink.all for writer in writers]
    manifest = open_checkpoint(make_store(), prefix, 10).manifest
    assert [[type(record) for record in found] for found in records] == [[CheckpointRecord]] * 2
    assert records[1][0].committed_at == manifest.committed_at
    assert records[1][0].bytes == sum(file.bytes for file in manifest.files)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def flip_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [truncate, flip_last_bit, flip_in_the_middle, Path.unlink])
@pytest.mark.parametrize("what", ["data", "index"])
def test_a_damaged_checkpoint_is_refused_by_all_and_the_one_before_is_used(prefix, folder, harm, what):
    writers = make_writers(make_store(), prefix, 2)
    save(writers, 10)
    save(writers, 20, since=10)
    index = next((folder / "step-00000020").glob("*-index.json"))
    harm(data_file(folder, 20, rank=1) if what == "data" else index)
    results, states = load(make_store(), prefix, [10, 20], 4, seed=10)
    assert all(state.is_whole() for state in states)
    for result in results:
        assert result.manifest.step == 10
        assert len(result.skipped) == 1
        assert "step-00000020" in result.skipped[0]


def test_a_checkpoint_that_two_machines_refuse_is_withdrawn_with_the_reasons_and_can_be_saved_again(prefix, folder):
    store = make_store()
    writers = make_writers(store, prefix, 1)
    save(writers, 10)
    save(writers, 20, since=10)
    flip_last_bit(data_file(folder, 20))
    commit = (folder / "step-00000020/commit.json").read_bytes()
    (result, _), _ = load(store, prefix, [10, 20], 2, seed=10, generation=2)
    assert (stored_steps(store, prefix).complete, stored_steps(store, prefix).refused) == ([10], [20])
    assert (folder / "step-00000020/refused.json").read_bytes() == commit
    marks = [json.loads(path.read_text()) for path in sorted((folder / "step-00000020").glob("suspect-000002-*.json"))]
    assert {mark["node"] for mark in marks} == {"here", "there"}
    assert "do not fit their checksum" in marks[0]["problem"]
    save(make_writers(store, prefix, 2, generation=2, resumed=result.manifest), 20, since=10)
    _, states = load(store, prefix, [10, 20], 3, seed=20)
    assert all(state.is_whole() for state in states)


def test_without_any_whole_checkpoint_training_does_not_silently_begin_again(prefix, folder):
    save(make_writers(make_store(), prefix, 1), 10)
    truncate(data_file(folder, 10))
    with pytest.raises(DataError, match=r"two machines found each damaged.*rename its refused\.json"):
        load(make_store(), prefix, [10], 2, seed=10)
    with pytest.raises(DataError, match="to begin at step 1, delete the run and this folder"):
        find_steps(make_store(), prefix, 0)


def test_a_checkpoint_without_commit_manifest_is_not_there(prefix, folder):
    store = make_store()
    writers = make_writers(store, prefix, 2)
    save(writers, 10)
    save(writers, 20, since=10)
    (folder / "step-00000020/commit.json").unlink()
    found = stored_steps(store, prefix)
    assert (found.complete, found.incomplete) == ([10], [20])


def test_a_rank_that_never_uploads_leaves_the_checkpoint_incomplete(prefix):
    store = make_store()
    first, _ = make_writers(store, prefix, 2)
    first._closing.set()  # the process ends while rank 0 waits for rank 1
    with pytest.raises(AbandonedError):
        save([first], 10)
    assert stored_steps(store, prefix).complete == []


def test_an_older_generation_cannot_commit(prefix):
    store = make_store()
    older = make_writers(store, prefix, 1, generation=1)
    Fence(store, prefix, 2).raise_()
    with pytest.raises(Fenced, match="generation 2 has begun"):
        save(older, 10)
    assert stored_steps(store, prefix).complete == []


def test_a_step_that_an_older_generation_committed_in_the_last_moment_is_accepted_if_equal(prefix, folder):
    store = make_store()
    save(make_writers(store, prefix, 2, generation=1), 10)
    save(make_writers(store, prefix, 1, generation=2), 10)
    assert json.loads((folder / "step-00000010/commit.json").read_text())["generation"] == 1
    with pytest.raises(Fenced, match="with other samples"):
        save(make_writers(store, prefix, 1, generation=3), 10, ids="other")


def test_old_checkpoints_are_deleted_when_a_newer_one_is_complete(prefix, folder):
    store = make_store()
    writers = make_writers(store, prefix, 1, policy=CheckpointPolicy(keep_last=2, keep_every_steps=20))
    for step in (10, 20, 30, 40, 50):
        save(writers, step, since=step - 10)
    assert stored_steps(store, prefix).complete == [20, 40, 50]
    assert not any((folder / "step-00000010").rglob("*.*"))


def test_a_checkpoint_of_another_model_names_the_parameters(prefix, monkeypatch):
    save(make_writers(make_store(), prefix, 1), 10)
    monkeypatch.setitem(SHAPES, "scale", (2,))
    with pytest.raises(ConfigError, match=r"scale: \(\) stored, \(2,\) here"):
        load(make_store(), prefix, [10], 1, seed=10)


def test_a_failed_upload_is_told_at_the_next_step(prefix, tmp_path):
    store = make_store()
    (writer,) = make_writers(store, prefix, 1)
    writer.check()
    (tmp_path / "stage/checkpoints").write_text("a file where a folder should be")
    with pytest.raises(Exception, match="stage"):
        save([writer], 10)
