"""Copies of what a run stored: from one object store to another, or to another place of the same one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import google_crc32c
from botocore.exceptions import ClientError

from videotrain.objectstore.s3_client import StorageError
from videotrain_api.schema import Json
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import LatestCheckpoint
from videotrain_api.storage.seals import FIELD, content


class Store(NamedTuple):
    """An object store and what it is called in messages."""

    client: Any
    """boto3's, for S3."""
    name: str


def copy_objects(source: Store, target: Store, uri: str, tell: Callable[[int], None]) -> int:
    """Copy an object, or everything below a folder, to the same URI of another store.

    Args:
        source: has it.
        target: gets it; what is there with the same size is left alone.
        uri: of the object or the folder.
        tell: is told the bytes of each object that was copied.

    Returns:
        How many objects there are.

    Raises:
        StorageError: there is nothing.
    """
    bucket, key = _place(uri)
    there = {item["Key"]: item["Size"] for item in _listed(target.client, bucket, key)}
    found = _listed(source.client, bucket, key)
    for item in found:
        if there.get(item["Key"]) != item["Size"]:
            body = source.client.get_object(Bucket=bucket, Key=item["Key"])["Body"]
            target.client.upload_fileobj(body, bucket, item["Key"])
            tell(item["Size"])
    if not found:
        raise StorageError(f"{uri}: {source.name} holds nothing there")
    return len(found)


def copy_checkpoint(source: Store, target: Store, old: str, new: str, run: str) -> int:
    """Copy the newest complete checkpoint of a stage to a stage of another run, which goes on from it.

    Its files and the proof of its order stay what they are; the commit manifest, which comes last, names the new run.

    Args:
        source: has it.
        target: gets it.
        old: prefix of the stage that wrote it.
        new: prefix of the stage that is to go on.
        run: namespace/name of the new run.

    Returns:
        Its step.

    Raises:
        StorageError: there is none, or it was written by a version that this one does not know.
    """
    latest = _sealed(source, layout.latest_checkpoint(old))
    step = LatestCheckpoint.from_wire(latest).step
    commit = _sealed(source, layout.checkpoint_commit(old, step))
    bucket, key = _place(layout.checkpoint_prefix(old, step))
    new_bucket, new_key = _place(layout.checkpoint_prefix(new, step))
    for name in [item["name"] for item in commit["files"]]:
        body = source.client.get_object(Bucket=bucket, Key=f"{key}/{name}")["Body"]
        target.client.upload_fileobj(body, new_bucket, f"{new_key}/{name}")
    _put_sealed(target, layout.checkpoint_commit(new, step), commit | {"run": run})
    _put_sealed(target, layout.latest_checkpoint(new), latest)
    return step


def _listed(client: Any, bucket: str, key: str) -> list[dict[str, Any]]:
    """The object, or what is below the folder; not its neighbours whose names begin alike."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    items = [item for page in pages for item in page.get("Contents", ())]
    return [item for item in items if item["Key"] == key or item["Key"].startswith(f"{key}/")]


def _sealed(store: Store, uri: str) -> Json:
    bucket, key = _place(uri)
    try:
        fields: Json = json.loads(store.client.get_object(Bucket=bucket, Key=key)["Body"].read() or b"{}")
    except ClientError as error:
        raise StorageError(f"{uri}: {store.name} gives no checkpoint: {error}") from None
    if _checksum({key: value for key, value in fields.items() if key != FIELD}) != fields.get(FIELD):
        raise StorageError(f"{uri}: is damaged: it does not fit its checksum")
    return fields


def _put_sealed(store: Store, uri: str, fields: Json) -> None:
    bucket, key = _place(uri)
    rest = {name: value for name, value in fields.items() if name != FIELD}
    store.client.put_object(Bucket=bucket, Key=key, Body=json.dumps(rest | {FIELD: _checksum(rest)}).encode())


def _checksum(fields: Json) -> str:
    return f"{google_crc32c.value(content(fields)):08x}"


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/")
