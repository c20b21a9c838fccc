"""Copies of what a run stored."""

import json

import boto3
import pytest
from moto import mock_aws

from videotrain.objectstore.copies import Store, copy_checkpoint, copy_objects
from videotrain.objectstore.s3_client import StorageError
from videotrain.report.workdir import DamagedObjectError, S3Objects, read_sealed
from videotrain_api.storage.artifacts import CheckpointFile, CheckpointManifest, LatestCheckpoint
from videotrain_trainer.checkpoint.damage import seal, unseal

AT = "2026-01-01T00:00:00Z"


class Memory:
    """Another object store; tests/local has a real one."""

    def __init__(self):
        self.objects = {}

    def get_paginator(self, _):
        return self

    def paginate(self, Bucket, Prefix):
        found = [{"Key": key, "Size": len(body)} for key, body in self.objects.items() if key.startswith(Prefix)]
        return [{"Contents": found}] if found else [{}]

    def upload_fileobj(self, body, _bucket, key):
        self.objects[key] = body.read()


@pytest.fixture
def store():
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="videotrain")
        yield Store(client, "the store")


def put(store, key, body):
    store.client.put_object(Bucket="videotrain", Key=key, Body=body)


def get(store, key):
    return store.client.get_object(Bucket="videotrain", Key=key)["Body"].read()


def checkpoint(store, prefix, step):
    files = [CheckpointFile(name=name, bytes=1, crc32c="0" * 8) for name in ("g000001-index.json", "state/a.bin")]
    manifest = CheckpointManifest.from_wire(
        {"run": "default/old", "stage": "train", "configHash": "0", "generation": 3, "step": step, "worldSize": 2,
         "capturedAt": AT, "committedAt": AT, "files": [file.to_wire() for file in files], "dataCursor": {},
         "order": [], "orderSha256": "", "samples": 8}
    )  # fmt: skip
    for file in files:
        put(store, f"{prefix}/checkpoints/step-{step:08d}/{file.name}", file.name.encode())
    put(store, f"{prefix}/checkpoints/step-{step:08d}/commit.json", seal(manifest))
    put(store, f"{prefix}/checkpoints/latest.json", seal(LatestCheckpoint(step=step, generation=3)))
    return manifest


def test_a_folder_is_copied_without_its_neighbours_and_only_once(store):
    put(store, "a/encode/one", b"1")
    put(store, "a/encode/below/two", b"22")
    put(store, "a/encode-2/three", b"3")
    other = Store(Memory(), "another")
    told = []
    assert copy_objects(store, other, "s3://videotrain/a/encode", told.append) == 2
    assert copy_objects(store, other, "s3://videotrain/a/encode", told.append) == 2
    assert sorted(told) == [1, 2]
    assert other.client.objects == {"a/encode/one": b"1", "a/encode/below/two": b"22"}
    with pytest.raises(StorageError, match="s3://videotrain/a/curate: the store holds nothing there"):
        copy_objects(store, other, "s3://videotrain/a/curate", told.append)


def test_the_newest_checkpoint_is_of_the_new_run_and_else_what_it_was(store):
    checkpoint(store, "old/train", 10)
    manifest = checkpoint(store, "old/train", 20)
    assert copy_checkpoint(store, store, "s3://videotrain/old/train", "s3://videotrain/new/train", "default/new") == 20
    folder = "new/train/checkpoints"
    copied = unseal(CheckpointManifest, "commit", get(store, f"{folder}/step-00000020/commit.json"))
    expected = manifest.model_copy(update={"run": "default/new", "crc32c": copied.crc32c})
    assert copied == expected
    assert unseal(LatestCheckpoint, "latest", get(store, f"{folder}/latest.json")).step == 20
    for file in manifest.files:
        assert get(store, f"{folder}/step-00000020/{file.name}") == file.name.encode()
    listed = store.client.list_objects_v2(Bucket="videotrain", Prefix="new/")["Contents"]
    assert not [item for item in listed if "step-00000010" in item["Key"]]


def test_a_damaged_commit_manifest_is_refused_and_nothing_is_written(store):
    checkpoint(store, "old/train", 20)
    key = "old/train/checkpoints/step-00000020/commit.json"
    put(store, key, json.dumps(json.loads(get(store, key)) | {"step": 30}).encode())
    with pytest.raises(StorageError, match="is damaged"):
        copy_checkpoint(store, store, "s3://videotrain/old/train", "s3://videotrain/new/train", "default/new")
    assert "Contents" not in store.client.list_objects_v2(Bucket="videotrain", Prefix="new/")
    with pytest.raises(DamagedObjectError):
        read_sealed(S3Objects(store.client), f"s3://videotrain/{key}")


def test_a_stage_without_a_checkpoint_is_told(store):
    with pytest.raises(StorageError, match="gives no checkpoint"):
        copy_checkpoint(store, store, "s3://videotrain/old/train", "s3://videotrain/new/train", "default/new")
