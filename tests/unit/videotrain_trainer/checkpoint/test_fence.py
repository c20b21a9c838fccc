from __future__ import annotations

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.checkpoint.fence import Fence
from videotrain_trainer.errors import Fenced
from videotrain_trainer.storage import ObjectStore


@pytest.fixture
def store():
    return ObjectStore.for_storage(Storage(uri="s3://unused-bucket"))


def test_a_newer_generation_shuts_out_an_older_one(store, tmp_path):
    prefix = f"file://{tmp_path}/stage"
    older, newer = Fence(store, prefix, 3), Fence(store, prefix, 4)
    older.raise_()
    older.check()
    newer.raise_()
    with pytest.raises(Fenced, match="generation 4 has begun; generation 3 must not write"):
        older.check()
    with pytest.raises(Fenced):
        older.raise_()
    newer.check()


def test_a_generation_may_start_twice(store, tmp_path):
    for _ in range(2):
        Fence(store, f"file://{tmp_path}/stage", 7).raise_()


def test_two_generations_that_start_at_once_cannot_lower_the_fence(store, tmp_path, monkeypatch):
    prefix = f"file://{tmp_path}/stage"
    older, newer = Fence(store, prefix, 5), Fence(store, prefix, 6)
    # The newer one comes between the older one's look and its mark.
    monkeypatch.setattr(older, "_refuse_newer", lambda _: newer.raise_())
    older.raise_()
    monkeypatch.undo()
    with pytest.raises(Fenced):
        older.check()
    newer.check()


def test_marks_of_older_generations_are_cleared_away(store, tmp_path):
    prefix = f"file://{tmp_path}/stage"
    for generation in (1, 2, 3):
        Fence(store, prefix, generation).raise_()
    assert [item.uri.rpartition("/")[2] for item in store.list(f"{prefix}/fence")] == ["g000003.json"]
