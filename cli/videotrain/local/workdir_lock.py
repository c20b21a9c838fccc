"""The working directory of a local run: who may use it, which run it holds, whether there is room."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from videotrain.locks import DirectoryError, held, held_for, holder
from videotrain_api.config.edits import Reached, edit_problems, edited_spec
from videotrain_api.resource.mutability import without_changeable, without_live
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Phase

RUNNING: Final = "a run is going on"
"""What a working directory is held for by `videotrain local`."""
START_BYTES: Final = 512 * 1024 * 1024
"""Free space that a run needs to start."""
LEAST_BYTES: Final = 128 * 1024 * 1024
"""Free space below which a run stops before its database, checkpoints and logs are cut off."""


def locked(workdir: Path, work: str = RUNNING) -> AbstractContextManager[Path]:
    """Hold the working directory, made if needed, for this process; yields its absolute path.

    Args:
        workdir: to hold.
        work: for which.

    Raises:
        DirectoryError: another process holds it, or it cannot be written.
    """
    return held(workdir, "--workdir", work, "wait for it or use another directory")


def runner(workdir: Path) -> int | None:
    """Process id of the other process that runs the run of a working directory; None if there is none."""
    return holder(workdir) if held_for(workdir) == RUNNING else None


def check_space(workdir: Path, needed: int = START_BYTES) -> None:
    """Refuse a disk that is about to be full.

    Raises:
        DirectoryError: less than `needed` bytes are free.
    """
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise DirectoryError(
            f"--workdir {workdir}: disk full: {free / 2**20:.0f} MiB are free and {needed / 2**20:.0f} MiB are needed; "
            "free some space and give the same command again, or use another --workdir"
        )


def check_same_run(workdir: Path, held: Json, wanted: VideoTrainingRun) -> None:
    """Refuse to go on with another run than the one that the directory holds.

    Args:
        workdir: for the message.
        held: the VideoTrainingRun in the directory's cluster.
        wanted: the run of this command.

    Raises:
        DirectoryError: the name, or a field of spec that may not change, differs; the message lists what. While the
            run is suspended, also its pool, image and what its stages do may change, if the samples keep their order.
    """
    name = held["metadata"]["name"]
    if name != wanted.metadata.name:
        raise DirectoryError(
            f"--workdir {workdir}: holds the run {name!r}, not {wanted.metadata.name!r}; use another one"
        )
    found = VideoTrainingRun.from_wire({key: value for key, value in held.items() if key != "status"})
    rests = held.get("status", {}).get("phase") == Phase.SUSPENDED
    compared = without_changeable if rests else without_live
    # What stages do may be edited while the run rests, so it is compared by itself.
    others = edited_spec(wanted.spec, found.spec) if rests else wanted.spec
    before, after = (compared(spec.model_dump(mode="json", by_alias=True)) for spec in (found.spec, others))
    differences = list(_differences("spec", before, after))
    if differences:
        listed = "\n".join(f"  {line}" for line in differences[:10])
        more = f"\n  and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise DirectoryError(
            f"--workdir {workdir}: holds this run with another spec; use the same manifest and options, another "
            f"directory, or `videotrain fork --workdir {workdir} --from STAGE --to W2 --set PATH=VALUE`, which begins "
            f"from what this run made. What differs:\n{listed}{more}"
        )

    if rests:
        _check_edits(workdir, found, wanted, read_status(held.get("status")).status)


def _check_edits(workdir: Path, found: VideoTrainingRun, wanted: VideoTrainingRun, status: RunStatus) -> None:
    after = found.model_copy(update={"spec": edited_spec(found.spec, wanted.spec)})
    reached = {stage.name: Reached(stage.state, stage.saved_step) for stage in status.stages}
    if problems := edit_problems(found, after, reached):
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise DirectoryError(
            f"--workdir {workdir}: its run cannot be edited so; undo it, or begin another run with `videotrain fork "
            f"--workdir {workdir} --from STAGE --to W2`:\n{listed}"
        )


def _differences(path: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(f"{path}.{key}", before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(f"{path}[{number}]", old, new)
    elif before != after:
        yield f"{path}: {_short(before)} in the directory, {_short(after)} now"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
