"""A complete checkpoint of one byte in an object store, for whoever copies or reads one."""

from __future__ import annotations

import json
from typing import Any

import google_crc32c

from videotrain_api.storage.seals import FIELD, content

BUCKET = "videotrain"


def sealed(document: dict[str, Any]) -> bytes:
    """With its checksum, as the trainer stores it."""
    return json.dumps({**document, FIELD: f"{google_crc32c.value(content(document)):08x}"}).encode()


def store_checkpoint(client: Any, prefix: str, *, run: str, stage: str, step: int) -> None:
    """Make the bucket and the checkpoint of a stage in it."""
    client.create_bucket(Bucket=BUCKET)
    file = {"name": "state.bin", "bytes": 1, "crc32c": "0" * 8}
    commit = {"run": run, "stage": stage, "step": step, "files": [file]}
    for key, body in (
        (f"step-{step:08d}/state.bin", b"x"),
        (f"step-{step:08d}/commit.json", sealed(commit)),
        ("latest.json", sealed({"step": step, "generation": 1})),
    ):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/checkpoints/{key}", Body=body)
