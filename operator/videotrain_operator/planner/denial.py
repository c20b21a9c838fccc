"""Access that the object store denies: another node first, then a pause without nodes, never the end of the run.

Keys, clocks, rights and buckets are mended outside of the run, so it waits for that as a pod waits for an image that
cannot be pulled: it tries again by itself, after pauses that double.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.status import StorageDenialStatus
from videotrain_operator.planner.draft import Draft

FIRST_PAUSE_SECONDS: Final = 60
LONGEST_PAUSE_SECONDS: Final = 3600


def note_denial(draft: Draft, message: str, *, everybody: bool) -> bool:
    """Put on record that a worker was denied access.

    Args:
        draft: the pass.
        message: what the worker told, with the answer of the object store.
        everybody: it is known that another node would change nothing.

    Returns:
        Whether the run waits from now on; otherwise it goes on without the node.
    """
    before, stage = draft.status.storage_denied, draft.stage()
    pauses = (before.pauses if before else 0) + (1 if before or everybody else 0)
    seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(max(0, pauses - 1), 12))
    denial = StorageDenialStatus(
        stage=stage.name if stage else "",
        saved_step=stage.saved_step if stage else 0,
        pauses=pauses,
        message=message[:500],
        until=draft.now + timedelta(seconds=seconds) if pauses else None,
    )
    draft.update(storage_denied=denial)
    if denial.until is None:
        return False
    draft.suspend_reason = Reason.STORAGE_DENIED
    draft.tell("Warning", Reason.STORAGE_DENIED, denial_text(denial))
    return True


def wait_for_storage(draft: Draft) -> None:
    """Keep the run without nodes until its next try; forget the denial once something is saved after it."""
    denial, stage = draft.status.storage_denied, draft.stage()
    if denial is None or draft.finished():
        return
    if stage is None or stage.name != denial.stage or stage.saved_step > denial.saved_step:
        draft.update(storage_denied=None)
    elif denial.until is not None and (draft.spec.suspend or draft.now >= denial.until):
        # Whoever suspends the run and takes that back has mended something and does not want to wait.
        draft.update(storage_denied=denial.model_copy(update={"until": None}))
    elif denial.until is not None:
        draft.look_again((denial.until - draft.now).total_seconds())
        draft.suspend_reason = draft.suspend_reason or Reason.STORAGE_DENIED


def denial_text(denial: StorageDenialStatus) -> str:
    """What a run that waits says: when it tries again, and what was answered."""
    time = f"{denial.until:%Y-%m-%d %H:%M:%S}" if denial.until else ""
    return Message.STORAGE_DENIED.text(time=time, why=denial.message)
