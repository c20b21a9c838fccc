"""One object by several processes: whole or not there, whoever dies, in S3 and on disk."""

from __future__ import annotations

import pickle

import boto3
import pytest

from videotrain_trainer.assembled_object import PART_BYTES, AssembledObject
from videotrain_trainer.storage import ObjectStore

LAST = b"the last part is short"


@pytest.fixture(params=["s3", "file"])
def uri(request, storage, tmp_path):
    return f"{storage.uri}/big" if request.param == "s3" else f"file://{tmp_path}/folder/big"


def content(number):
    return bytes([number]) * PART_BYTES


def test_parts_that_others_store_in_any_order_make_the_object(store, storage, uri):
    begun = AssembledObject.begin(store, uri)
    other = AssembledObject(pickle.loads(pickle.dumps(store)), uri, begun.upload)
    parts = [other.put(2, LAST), begun.put(1, content(1)), other.put(0, content(7)), begun.put(0, content(0))]
    assert not store.exists(uri)
    begun.finish([*parts[:2], parts[3]])
    assert ObjectStore.for_storage(storage).get(uri) == content(0) + content(1) + LAST


def test_what_a_dead_writer_left_is_no_object_and_goes_when_it_is_begun_again(store, storage, s3, uri):
    AssembledObject.begin(store, uri).put(0, content(0))
    again = AssembledObject.begin(store, uri)
    assert not store.exists(uri)
    again.finish([again.put(0, content(1)), again.put(1, LAST)])
    assert store.get(uri) == content(1) + LAST
    if uri.startswith("s3://"):
        client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
        assert not client.list_multipart_uploads(Bucket="bucket").get("Uploads")
