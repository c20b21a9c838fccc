"""Curation with an image model: scores and embeddings in the set, bounds on them without a video being read again."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.image_models import WIDTH, clip_folder, laion_head

from videotrain_api.resource.stages import CurateTask, ImageModel
from videotrain_api.storage import layout
from videotrain_trainer.commands import curate_run
from videotrain_trainer.curation.dedup_embeddings import SCALE
from videotrain_trainer.data.clip_table import ClipTable
from videotrain_trainer.data.manifest import CLIP_SCHEMA, EMBEDDING_SCHEMA, read_table, to_parquet
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.tasks import curate


@pytest.fixture
def folder(tmp_path, paint_video, texture) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(4):
        paint_video(raw / f"{number}.mp4", 36, texture(number + 1))
    return raw


def model(tmp_path: Path) -> ImageModel:
    torch.save(laion_head(WIDTH), tmp_path / "head.pth")
    return ImageModel(weights=str(clip_folder(tmp_path / "clip")), head=str(tmp_path / "head.pth"))


def rows(store, prefix: str) -> list[dict]:
    return read_table(store, layout.clip_manifest(prefix), CLIP_SCHEMA).to_pylist()


def test_scores_embeddings_bounds_and_look_alikes(folder, tmp_path, store, make_config, make_context, monkeypatch):
    task = CurateTask(min_seconds=1.0, long_side=128, max_motion=15, image_model=model(tmp_path), dedup_cosine=1)
    config = make_config(task, videos=folder.as_uri())
    prefix = config.paths.output
    assert curate.run(make_context(config)) == "completed"
    found = rows(store, prefix)
    assert [row["kept"] for row in found] == [True] * 4
    scores = sorted(row["aesthetic"] for row in found)
    assert len(set(scores)) == 4
    table = read_table(store, layout.clip_embeddings(prefix), EMBEDDING_SCHEMA).to_pylist()
    assert {row["uid"] for row in table} == {row["uid"] for row in found}
    vectors = np.stack([np.frombuffer(row["embedding"], np.int8) for row in table]) / SCALE
    assert vectors.shape == (4, WIDTH)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 0.05
    assert not [item for item in store.list(f"{prefix}/clips") if not item.uri.endswith(".mp4")]

    monkeypatch.setattr(curate_run.ObjectStore, "for_storage", lambda storage: store)
    told = Namespace(action="report", set=prefix, bounds=[], output=tmp_path / "page.html")
    assert curate_run.run(told) == 0
    page = told.output.read_text()
    assert all(f", aesthetic {score:.3g}<" in page for score in scores)
    assert "<b>aesthetic</b> <span" in page
    middle = (scores[1] + scores[2]) / 2
    retune(prefix, f"minAesthetic={middle}")
    left = rows(store, prefix)
    assert [row["kept"] for row in left] == [row["aesthetic"] >= middle for row in left]
    assert {row["reason"] for row in left} == {"", "unappealing"}
    table[1]["embedding"] = table[0]["embedding"]
    store.put(layout.clip_embeddings(prefix), to_parquet(table, EMBEDDING_SCHEMA))
    retune(prefix, "minAesthetic=null", "dedupCosine=0.9999")
    (lost,) = [row for row in rows(store, prefix) if not row["kept"]]
    assert (lost["uid"], lost["reason"], lost["bound"]) == (table[1]["uid"], "duplicate", 0.9999)
    assert lost["detail"].startswith(f"cosine 1.0000 with clip {table[0]['uid']} of ")


def test_a_bound_on_a_score_that_no_predictor_gives_ends_the_stage(folder, tmp_path, make_config, make_context):
    bare = ImageModel(weights=str(clip_folder(tmp_path / "clip")))
    task = CurateTask(min_seconds=1.0, long_side=128, image_model=bare, min_aesthetic=4.5)
    with pytest.raises(ConfigError, match=r"curate\.minAesthetic: 4\.5: no clip has an aesthetic score"):
        curate.run(make_context(make_config(task, videos=folder.as_uri())))


def retune(prefix: str, *bounds: str) -> None:
    assert curate_run.run(Namespace(action="retune", set=prefix, bounds=list(bounds), output=None)) == 0


def test_a_set_that_was_curated_before_a_score_was_known_is_read(store, storage):
    prefix = f"{storage.uri}/old"
    row = dict.fromkeys(CLIP_SCHEMA.names) | {"uid": "a", "kept": True}
    old = CLIP_SCHEMA.remove(CLIP_SCHEMA.get_field_index("aesthetic"))
    store.put(layout.clip_manifest(prefix), to_parquet([row], old))
    assert rows(store, prefix)[0]["aesthetic"] is None
    assert ClipTable(store, prefix).clips(range(1))[0]["aesthetic"] is None
