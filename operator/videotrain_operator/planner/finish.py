"""The end of a run, and what is left to do after it."""

from __future__ import annotations

from datetime import timedelta

from videotrain_api.reasons import Message, Reason
from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.conditions import set_condition
from videotrain_operator.planner.draft import Draft


def fail_run(draft: Draft, reason: str, message: str) -> None:
    """The run failed; its pods end, and stay for whoever reads their logs."""
    live = draft.live
    if live is not None:
        draft.end_generation("drained", reason, message)
    stage = draft.stage()
    if stage is not None and stage.state == "Running":
        draft.update_stage(stage.name, state="Failed", finished_at=draft.now)
    set_condition(draft, Condition.FAILED, status=True, reason=reason, message=message)
    draft.update(completion_time=draft.now)
    draft.tell("Warning", Reason.FAILED, Message.FAILED.text(reason=reason, message=message))
    draft.look_again(0)


def succeed_run(draft: Draft, message: str) -> None:
    """Every stage is complete. One moment is one event, so the message tells of the last stage, too."""
    set_condition(draft, Condition.COMPLETE, status=True, reason=Reason.ALL_STAGES_SUCCEEDED)
    draft.update(completion_time=draft.now)
    draft.tell("Normal", Reason.SUCCEEDED, message)
    draft.look_again(0)


def seconds_left(draft: Draft) -> float | None:
    """Until the TTL of a finished run is over; None if it has none."""
    ttl, finished = draft.spec.ttl_seconds_after_finished, draft.status.completion_time
    return None if ttl is None or finished is None else (finished + timedelta(seconds=ttl) - draft.now).total_seconds()


def expire_run(draft: Draft) -> None:
    """Delete the finished run when its TTL is over and nothing of it runs any more."""
    if not draft.finished():
        return
    left = seconds_left(draft)
    if left is None:
        return
    if left > 0:
        draft.look_again(left)
    elif not draft.observed.pods and draft.confirmed("Deletion"):
        draft.delete_run = True
