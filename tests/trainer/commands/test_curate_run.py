from __future__ import annotations

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_trainer.cli import main
from videotrain_trainer.data.manifest import CLIP_SCHEMA, read_table
from videotrain_trainer.storage import ObjectStore


@pytest.fixture
def raw(tmp_path, paint_video, texture):
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(2):
        paint_video(folder / f"clip-{number}.mp4", 24, texture(number, height=48, width=64))
    (folder / "clip-0.txt").write_text("a pattern")
    (folder / "letter.mp4").write_text("no video")
    return folder


def test_a_folder_is_curated_from_the_command_line_and_given_again_nothing_is_done_twice(raw, tmp_path, capsys):
    output, task = (tmp_path / "set").as_uri(), tmp_path / "task.yaml"
    task.write_text("minSeconds: 0.5\nmaxSeconds: 2\nlongSide: 64\nminMotion: 0\nminBlur: 0\n")
    told = []
    for places in ([raw.as_uri(), output], [str(raw), str(tmp_path / "set")]):
        assert main(["curate", "run", *places, "--task", str(task)]) == 0
        told.append(capsys.readouterr())
    assert told[0].out == told[1].out
    assert "clips of 3 videos; dropped: 1 unreadable" in told[0].out
    assert "3 of 3 steps" in told[0].err
    assert told[1].err == ""
    store = ObjectStore.for_storage(Storage(uri="s3://unused"))
    rows = read_table(store, layout.clip_manifest(output), CLIP_SCHEMA).to_pylist()
    assert {row["source"]: row["caption"] for row in rows} == {"clip-0.mp4": "a pattern", "clip-1.mp4": "clip 1"}


def test_a_list_is_curated_from_the_command_line(raw, tmp_path, capsys):
    (raw / "list.csv").write_text("path,text\nclip-1.mp4,The only one.\n")
    task, output = tmp_path / "task.yaml", (tmp_path / "set").as_uri()
    task.write_text("minSeconds: 0.5\nlongSide: 64\nminMotion: 0\nminBlur: 0\n")
    options = ["--form", "list", "--task", str(task)]
    assert main(["curate", "run", (raw / "list.csv").as_uri(), output, *options]) == 0
    store = ObjectStore.for_storage(Storage(uri="s3://unused"))
    (row,) = read_table(store, layout.clip_manifest(output), CLIP_SCHEMA).to_pylist()
    assert (row["source"], row["caption"]) == ("videos/clip-1.mp4", "The only one.")
    assert "1 clips of 1 videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "ray"], "--address: engine is ray"),
        (["--address", "ray://there:10001"], "--address: engine is local"),
        (["--task", "nowhere.yaml"], "--task nowhere.yaml"),
        (["--captions", "ftp://there"], "captionTable"),
    ],
)
def test_options_that_do_not_fit_are_refused(raw, tmp_path, capsys, options, told):
    assert main(["curate", "run", raw.as_uri(), (tmp_path / "set").as_uri(), *options]) == 64
    assert told in capsys.readouterr().err
