"""The checkpoints of a stage as they lie in the object store."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import CheckpointManifest, LatestCheckpoint
from videotrain_trainer.checkpoint.damage import DamagedCheckpointError, read_again, seal, unseal
from videotrain_trainer.errors import AlreadyExists, ConfigError, DataError, ObjectMissing, StorageUnavailable
from videotrain_trainer.storage import ObjectStore

_GENERATION = re.compile(r"/g(\d+)-[^/]+$")
_STEP = re.compile(r"/checkpoints/step-(\d+)/(.+)$")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSteps:
    """The steps of which there are checkpoints in storage, ascending."""

    complete: list[int]
    """With a commit manifest."""
    refused: list[int]
    """Complete once; two machines have found the same damage."""
    incomplete: list[int]
    """Objects without either: being written, left behind by a process that died, or not yet removed by `give_up`."""

    def account_for(self, step: int) -> bool:
        """Whether it can be that `step` was saved and this is what is left."""
        return step == 0 or step in (*self.complete, *self.refused) or max(self.complete, default=0) > step


def stored_steps(store: ObjectStore, prefix: str) -> StoredSteps:
    """All checkpoints of a stage, by one listing; a listing may be wrong, see `find_steps`."""
    complete, refused, seen = set(), set(), set()
    for item in store.list(layout.checkpoints(prefix)):
        match = _STEP.search(item.uri)
        closed = match and match.group(2) == "commit.json" and not item.size
        if match and not closed:
            step = int(match.group(1))
            seen.add(step)
            if match.group(2) == "commit.json":
                complete.add(step)
            elif match.group(2) == "refused.json":
                refused.add(step)
    refused -= complete
    return StoredSteps(sorted(complete), sorted(refused), sorted(seen - complete - refused))


def find_steps(store: ObjectStore, prefix: str, saved_step: int) -> StoredSteps:
    """All checkpoints of a stage, by a listing that fits what else is known of them.

    An answer of a store that is empty, stale or no listing at all looks like a stage that has saved nothing. So it has
    to account for `saved_step` and for the object that names the latest checkpoint; else it is asked for once more, and
    then for the commit manifest itself.

    Raises:
        StorageUnavailable: a checkpoint that was saved is nowhere.
        DataError: there were checkpoints, and all were refused.
    """
    known = max(saved_step, _latest_step(store, prefix))
    found = stored_steps(store, prefix)
    if not found.account_for(known):
        log.warning("%s: the listing lacks step %d, which was saved; listed again", layout.checkpoints(prefix), known)
        found = stored_steps(store.reconnected(), prefix)
    if not found.account_for(known):
        try:
            read_again(store.reconnected(), lambda source: read_commit(source, prefix, known))
        except ObjectMissing:
            raise StorageUnavailable(
                f"{layout.checkpoints(prefix)}: step {known} was saved, and the newest checkpoint that is found is of "
                f"step {max(found.complete, default=0)}; it was listed twice and asked for by name, and training does "
                "not go on below it by itself. See that the object store lists and gives what it holds; to begin this "
                "stage again, delete the run and this folder, and make the run again"
            ) from None
        found = StoredSteps(sorted({*found.complete, known}), found.refused, found.incomplete)
    if found.refused and not found.complete:
        raise all_refused(prefix, [str(step) for step in found.refused])
    return found


def all_refused(prefix: str, what: list[str]) -> DataError:
    """There were checkpoints, and none is whole: for people to decide."""
    return DataError(
        f"{layout.checkpoints(prefix)}: there were checkpoints, and two machines found each damaged: "
        f"{'; '.join(what[:5])}. To try one again, rename its refused.json to commit.json; to begin at step 1, "
        "delete the run and this folder, and make the run again"
    )


def read_commit(store: ObjectStore, prefix: str, step: int, owner: tuple[str, str] | None = None) -> CheckpointManifest:
    """The commit manifest of a checkpoint, by one reading.

    Args:
        store: object store.
        prefix: of the stage.
        step: of the checkpoint.
        owner: run and stage that must have written it; None if that is not asked.

    Raises:
        ObjectMissing: there is none, so the checkpoint is not complete; or an empty one: the step was given up.
        DamagedCheckpointError: it does not fit its checksum, or is of another step.
        ConfigError: another run or stage wrote it.
    """
    uri = layout.checkpoint_commit(prefix, step)
    data = store.get(uri)
    if not data:
        raise ObjectMissing(f"{uri}: is empty; a later generation has given this step up")
    manifest = unseal(CheckpointManifest, uri, data)
    if manifest.step != step:
        raise DamagedCheckpointError(uri, f"step {manifest.step}", f"is of step {manifest.step}")
    if owner is not None and (manifest.run, manifest.stage) != owner:
        raise ConfigError(
            f"{uri}: written by stage {manifest.stage!r} of run {manifest.run!r}, and this is stage {owner[1]!r} of "
            f"run {owner[0]!r}; give one of the runs another name or spec.storage.uri"
        )
    return manifest


def note_latest(store: ObjectStore, prefix: str, manifest: CheckpointManifest) -> None:
    """Name the checkpoint that was completed last in an object of its own; `find_steps` compares listings with it."""
    store.put(
        layout.latest_checkpoint(prefix), seal(LatestCheckpoint(step=manifest.step, generation=manifest.generation))
    )


def _latest_step(store: ObjectStore, prefix: str) -> int:
    uri = layout.latest_checkpoint(prefix)
    try:
        return read_again(store, lambda source: unseal(LatestCheckpoint, uri, source.get(uri))).step
    except ObjectMissing:
        return 0
    except DamagedCheckpointError as error:
        log.warning("%s; it tells only that there are checkpoints", error)
        return 1


def delete_checkpoint(store: ObjectStore, prefix: str, step: int, generation: int) -> None:
    """Remove a complete checkpoint; its commit manifest first, so that it is never complete and half gone.

    Where another generation has left files of the step, it may be about to complete it with these, or to repeat what
    completed it since it has no answer yet. So the step is closed as in `give_up`. A generation that comes later finds
    the fence before it creates the commit manifest.

    Args:
        store: object store.
        prefix: of the stage.
        step: of the checkpoint.
        generation: whose process deletes it.

    Raises:
        StorageUnavailable: the commit manifest is still there, so its files were left in place.
    """
    commit = layout.checkpoint_commit(prefix, step)
    found = store.list(layout.checkpoint_prefix(prefix, step))
    if {int(match.group(1)) for item in found if (match := _GENERATION.search(item.uri))} == {generation}:
        store.delete(commit)
    else:
        store.put(commit, b"")
        if store.reconnected().stat(commit).size:
            raise StorageUnavailable(f"{commit}: was emptied, and is not empty; nothing was deleted")
    for item in found:
        if item.uri != commit:
            store.delete(item.uri)


def give_up(store: ObjectStore, prefix: str, step: int) -> bool:
    """Remove what there is of a checkpoint that is not complete, so that nobody completes it meanwhile.

    The process that wrote it may be past its last look at the fence, about to create the commit manifest. So an empty
    one takes that place first, and stays: of the two that create it, the store lets one be first.

    Returns:
        False if the checkpoint turns out to be complete; then nothing was removed.
    """
    commit = layout.checkpoint_commit(prefix, step)
    try:
        store.put_once(commit, b"")
    except AlreadyExists:
        return False
    found = store.list(layout.checkpoint_prefix(prefix, step))
    for item in found:
        if item.uri != commit:
            store.delete(item.uri)
    return True


def withdraw(store: ObjectStore, prefix: str, step: int) -> None:
    """Rename the commit manifest of a checkpoint to `refused.json`, so that nothing loads it and its step can be saved
    again. Nothing is lost: the store itself copies the manifest, and renaming it back undoes this.

    Raises:
        StorageUnavailable: the copy is not stored, so the manifest was left in place.
    """
    commit, refused = layout.checkpoint_commit(prefix, step), layout.refused_commit(prefix, step)
    try:
        store.copy(commit, refused)
    except ObjectMissing:
        return
    if not store.reconnected().exists(refused):
        raise StorageUnavailable(f"{refused}: was copied from {commit}, and is not stored; nothing was deleted")
    store.delete(commit)
