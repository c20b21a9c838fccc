"""Videos inside an installed package."""

import sys

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.curation.packaged import resolve_package
from videotrain_trainer.curation.source import VideoFolder
from videotrain_trainer.errors import DataError

STORAGE = Storage(uri="s3://bucket/x")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "packed_clips" / "inner" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "packed_clips" / "__init__.py").write_text("raise RuntimeError('never imported')")
    (folder / "a.mp4").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_videos_of_a_package_are_listed_without_importing_it(folder):
    found = VideoFolder("package://packed_clips.inner/data", STORAGE)
    assert [video.name for video in found.videos({})] == ["a.mp4"]
    assert found.uri == "package://packed_clips.inner/data"
    assert "packed_clips" not in sys.modules


def test_other_uris_are_left_alone(tmp_path):
    assert resolve_package("s3://bucket/videos", "f") == "s3://bucket/videos"
    assert resolve_package(tmp_path.as_uri(), "f") == tmp_path.as_uri()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        (
            "package://no_such_package/data",
            "'no_such_package' is not installed in the worker's image; install it there",
        ),
        ("package://packed_clips.inner/nothing", "has no folder inner/nothing"),
        ("package:///data", "the package '' is not installed"),
    ],
)
def test_what_is_not_there_is_a_data_error_that_names_the_field_and_the_way_out(folder, uri, told):
    with pytest.raises(DataError) as refused:
        VideoFolder(uri, STORAGE)
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"spec.dataset.videos: {uri}")
