"""The page of a curated set, and other bounds on it, without a video."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import planted_faults as planted

from videotrain_api.resource.stages import CurateTask
from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import DropReport
from videotrain_trainer.checksums import sealed_json, unsealed_json
from videotrain_trainer.cli import main
from videotrain_trainer.curation.merge import merge
from videotrain_trainer.curation.pipeline import curate_file
from videotrain_trainer.data.manifest import CLIP_SCHEMA, read_table, to_parquet
from videotrain_trainer.storage import ObjectStore

VIDEOS = {
    "good <1>": planted.scene(1),
    "good 2": planted.scene(2),
    "again": planted.scene(2),
    "still": planted.still(3),
    "shaken": planted.shaken(4),
    "blurred": planted.blurred(5),
    "letterbox": planted.bordered(6, 22, 0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A curated set whose raw videos are gone."""
    folder, task = tmp_path_factory.mktemp("set"), CurateTask(min_seconds=1.0)
    (folder / "clips").mkdir()
    results = []
    for name, scene in VIDEOS.items():
        path = planted.paint(folder / "raw.mp4", scene, 26, crf=24 if name == "again" else 20)
        result = curate_file(path, name, folder / "clips", task, lambda share: None)
        results.append({"name": f"{name}.mp4", "content": name, "caption": name, **result})
        path.unlink()
    dropped = {"dropped": ["unreadable", "no frame", None, None], "clips": []}
    results.append({"name": "torn.mp4", "content": "torn", "caption": "", **dropped})
    rows, report = merge(results, task)
    (folder / "manifest.parquet").write_bytes(to_parquet(rows, CLIP_SCHEMA))
    (folder / "drop-report.json").write_bytes(sealed_json(report.to_wire()))
    return folder


def kept(folder: Path) -> set[str]:
    store = ObjectStore.for_storage(Storage(uri="s3://from-the-environment"))
    rows = read_table(store, layout.clip_manifest(folder.as_uri()), CLIP_SCHEMA).to_pylist()
    return {row["source"] for row in rows if row["kept"]}


def counts(folder: Path) -> dict[str, int]:
    return DropReport.from_wire(unsealed_json((folder / "drop-report.json").read_bytes())).counts


def test_the_page_shows_reasons_histograms_and_frames_and_needs_nothing_else(made, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["curate", "report", str(made), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: 3 of 7 clips are kept\n"
    html = page.read_text()
    assert not re.search(r"<script|https?://|good <1>", html)
    assert "good &lt;1&gt;.mp4" in html
    for reason in ("still", "shaken", "blurred", "duplicate", "kept"):
        assert f"<h2>{reason}:" in html
    assert html.count("data:image/jpeg;base64,") == 7 + 1  # every clip, and the twin of the duplicate
    assert html.count("<svg") == 8
    assert ">at most 60, beyond all of these<" in html
    assert "e-09" not in html, "a score that all clips share has a scale, too"
    assert "<h2>still: 1 clip</h2>" in html
    assert "not measured" in html  # no text was looked for
    assert "<tr><td>torn.mp4<td>unreadable<td>no frame" in html


def test_bounds_move_without_a_video_and_only_retune_keeps_them(made, tmp_path, capsys):
    before = kept(made)
    assert before in ({"good <1>.mp4", "letterbox.mp4", twin} for twin in ("good 2.mp4", "again.mp4"))
    page = tmp_path / "page.html"
    main(["curate", "report", str(made), "--set", "maxJitter=50", "--output", str(page)])
    assert ": 4 of 7 clips" in capsys.readouterr().out
    assert kept(made) == before
    still = ["--set", "minMotion=0", "--set", "minChange=0"]
    main(["curate", "retune", str(made), "--set", "maxJitter=50", *still])
    assert capsys.readouterr().out.startswith(
        "3 clips were kept, now 5 are; dropped: 1 blurred, 1 duplicate, 1 unreadable"
    )
    assert kept(made) == before | {"shaken.mp4", "still.mp4"}
    main(["curate", "retune", str(made), "--set", "maxJitter=1.5", "--set", "minMotion=0.05", "--set", "minChange=3"])
    assert kept(made) == before
    assert counts(made) == {"blurred": 1, "duplicate": 1, "shaken": 1, "still": 1, "unreadable": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("minSeconds=3", "write FIELD=VALUE with one of dedupCosine, dedupDistance, max"),
        ("minMotion", "write FIELD=VALUE"),
        ("maxJitter=fast", "maxJitter: Input should be a valid number"),
        ("minAesthetic=4.5", "minAesthetic: 4.5: no clip has an aesthetic score; it needs imageModel"),
    ],
)
def test_what_is_no_bound_is_refused(made, capsys, given, told):
    assert main(["curate", "retune", str(made), "--set", given]) != 0
    assert told in capsys.readouterr().err
