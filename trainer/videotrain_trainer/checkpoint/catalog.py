"""The checkpoints of a stage as they lie in the object store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest
from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.storage import ObjectStore

_STEP = re.compile(r"/checkpoints/step-(\d+)/(.+)$")


class DamagedCheckpointError(Exception):
    """A checkpoint is complete by its commit manifest, but what is stored does not fit it."""


@dataclass(frozen=True)
class StoredSteps:
    """The steps of which there are checkpoints in storage, ascending."""

    complete: list[int]
    """With a commit manifest."""
    incomplete: list[int]
    """Objects without one: being written, or left behind by a process that died."""


def stored_steps(store: ObjectStore, prefix: str) -> StoredSteps:
    """All checkpoints of a stage, by one listing."""
    complete, seen = set(), set()
    for item in store.list(f"{prefix}/checkpoints"):
        match = _STEP.search(item.uri)
        if match:
            seen.add(int(match.group(1)))
            if match.group(2) == "commit.json":
                complete.add(int(match.group(1)))
    return StoredSteps(sorted(complete), sorted(seen - complete))


def read_commit(store: ObjectStore, prefix: str, step: int) -> CheckpointManifest:
    """The commit manifest of a checkpoint.

    Raises:
        ObjectMissing: there is none, so the checkpoint is not complete.
        DamagedCheckpointError: it cannot be read.
    """
    uri = layout.checkpoint_commit(prefix, step)
    try:
        return CheckpointManifest.model_validate_json(store.get(uri))
    except ValidationError as error:
        raise DamagedCheckpointError(f"{uri}: not a commit manifest: {error.errors()[0]['msg']}") from error


def delete_checkpoint(store: ObjectStore, prefix: str, step: int) -> None:
    """Remove a checkpoint; its commit manifest first, so that it is never complete and half gone."""
    store.delete(layout.checkpoint_commit(prefix, step))
    for item in store.list(layout.checkpoint_prefix(prefix, step)):
        store.delete(item.uri)


def withdraw(store: ObjectStore, prefix: str, step: int, reason: str) -> None:
    """Take back the commit manifest of a damaged checkpoint, so that nothing loads it and the step can be saved again.

    The manifest and the reason stay beside its files as `refused.json`.
    """
    commit = layout.checkpoint_commit(prefix, step)
    try:
        manifest = store.get(commit)
    except ObjectMissing:
        return
    note = f"{datetime.now(UTC).isoformat()} {reason}\n".encode()
    store.put(f"{layout.checkpoint_prefix(prefix, step)}/refused.json", note + manifest)
    store.delete(commit)
