"""Where the raw videos are."""

import sys

import pytest

from videotrain.local.dataset import DatasetError, resolve_videos
from videotrain_api.resource.sources import Source
from videotrain_api.resource.trainrun import Dataset


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_clips" / "inner" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "some_clips" / "__init__.py").write_text("raise RuntimeError('never imported')")
    (folder / "a.mp4").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_packages_folder_is_found_without_importing_the_package(package):
    assert resolve_videos(Dataset(videos="package://some_clips.inner/data"), None) == {"": package.as_uri()}
    assert "some_clips" not in sys.modules


def test_a_data_folder_wins_over_the_manifest(tmp_path):
    (tmp_path / "a video.mp4").touch()
    assert resolve_videos(Dataset(videos="package://no_such_package/data"), tmp_path) == {"": tmp_path.as_uri()}


def test_object_storage_and_nothing_are_left_alone():
    assert resolve_videos(Dataset(videos="s3://bucket/videos"), None) == {"": "s3://bucket/videos"}
    assert resolve_videos(Dataset(), None) == {}


def test_each_folder_of_several_sources_is_found_and_named_where_it_is_missing(package, tmp_path):
    found = [Source(name="own", uri="package://some_clips.inner/data"), Source(name="web", uri="s3://bucket/web")]
    assert resolve_videos(Dataset(sources=found), None) == {"own": package.as_uri(), "web": "s3://bucket/web"}
    listed = Source(name="list", form="list", uri="file:///lists/a.csv")
    assert resolve_videos(Dataset(sources=[listed]), None) == {"list": "file:///lists/a.csv"}, (
        "the trainer looks into it"
    )
    missing = Source(name="lost", uri=(tmp_path / "none").as_uri())
    with pytest.raises(DatasetError, match=r"spec\.dataset\.sources\[lost\]\.uri .* does not exist"):
        resolve_videos(Dataset(sources=[*found, missing]), None)
    with pytest.raises(DatasetError, match=r"--data .* spec\.dataset\.sources; change them there"):
        resolve_videos(Dataset(sources=found), tmp_path)


@pytest.mark.parametrize(
    ("videos", "told"),
    [
        (
            "package://no_such_package/data",
            "'no_such_package' is not installed; install it, or give a folder of videos with --data",
        ),
        ("package://some_clips.inner/nothing", "does not exist"),
        ("file:///no/such/folder", "/no/such/folder does not exist"),
    ],
)
def test_missing_videos_are_refused_with_the_way_out(package, videos, told):
    with pytest.raises(DatasetError) as refused:
        resolve_videos(Dataset(videos=videos), None)
    assert told in str(refused.value)
    assert f"spec.dataset.videos {videos!r}" in str(refused.value)


def test_an_empty_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="is empty"):
        resolve_videos(Dataset(), tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(DatasetError, match="is empty"):
        resolve_videos(Dataset(), tmp_path)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(DatasetError, match="is a file"):
        resolve_videos(Dataset(), tmp_path / "a.mp4")
