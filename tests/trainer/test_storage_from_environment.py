"""A run that names no endpoint and no Secret takes both from the environment, whoever asks."""

import pickle

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.curation.source import VideoFolder
from videotrain_trainer.errors import StorageUnavailable
from videotrain_trainer.storage import ObjectStore


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_objects_and_files_go_to_the_endpoint_of_the_environment(s3, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, s3)
    storage = Storage(uri=f"s3://bucket/{tmp_path.name}-{variable}")
    store = ObjectStore.for_storage(storage)
    store.check()
    store.put(f"{storage.uri}/a.txt", b"x")
    assert pickle.loads(pickle.dumps(store)).get(f"{storage.uri}/a.txt") == b"x"
    store.put(f"{storage.uri}/a.mp4", b"video")
    assert [video.name for video in VideoFolder(storage.uri, Storage(uri="s3://other")).videos({})] == ["a.mp4"]
    assert ObjectStore(Storage(uri=storage.uri, endpoint_url=s3)).exists(f"{storage.uri}/a.txt")


def test_the_endpoint_of_the_run_wins_over_the_environment(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage = Storage(uri=f"s3://bucket/{tmp_path.name}", endpoint_url=s3)
    ObjectStore(storage).put(f"{storage.uri}/a.txt", b"x")


def test_a_failure_names_the_endpoint_of_the_environment(monkeypatch):
    monkeypatch.setattr("videotrain_trainer.storage.RETRIES", {"max_retries": 0})
    monkeypatch.setattr("videotrain_trainer.storage.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable, match=r"http://127\.0\.0\.1:9 keeps failing"):
        ObjectStore(Storage(uri="s3://bucket/x")).get("s3://bucket/x/a")
