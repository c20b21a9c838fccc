"""Deadlines: how long nodes may be held, and how long the first step may take."""

from __future__ import annotations

from datetime import timedelta

from videotrain_api.reasons import Message, Reason
from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.conditions import find_condition
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.finish import fail_run


def track_active_time(draft: Draft) -> None:
    """Add up the time in which pods are held, and note when the first pod came."""
    held = [pod for pod in draft.observed.pods if pod.bound_at is not None and pod.finished_at is None]
    since = draft.status.active_since
    created = min((pod.created_at for pod in draft.observed.pods), default=None)
    if draft.status.start_time is None and created is not None:
        draft.update(start_time=created)
    if held:
        begin = since or min(pod.bound_at for pod in held if pod.bound_at is not None)
        draft.update(active_since=begin, observed_at=draft.observed.looked_at or draft.now)
    elif since is not None:
        ends = [pod.finished_at for pod in draft.observed.pods if pod.finished_at is not None]
        # None of them is later than now, except by a clock that was wrong.
        end = max(since, min(draft.now, max(ends or [draft.before.observed_at or since])))
        closed = draft.status.active_microseconds + (end - since) // timedelta(microseconds=1)
        draft.update(active_since=None, active_microseconds=closed)


def check_deadlines(draft: Draft) -> None:
    """Fail the run when it held its nodes too long, or did not start in time."""
    if draft.finished():
        return
    limit = draft.spec.active_deadline_seconds
    if limit is not None:
        _check_active(draft, limit)
    limit = draft.spec.start_deadline_seconds
    if limit is not None and not draft.finished():
        _check_start(draft, limit)


def _check_active(draft: Draft, limit: int) -> None:
    since = draft.status.active_since
    active = timedelta(microseconds=draft.status.active_microseconds) + (draft.now - since if since else timedelta(0))
    left = timedelta(seconds=limit) - active
    if left <= timedelta(0):
        if not draft.confirmed(Reason.DEADLINE_EXCEEDED):
            return
        message = Message.ACTIVE_DEADLINE.text(seconds=f"{active.total_seconds():.0f}", limit=limit)
        fail_run(draft, Reason.DEADLINE_EXCEEDED, message)
    elif since is not None:
        draft.look_again(left.total_seconds())


def _check_start(draft: Draft, limit: int) -> None:
    """Waiting while suspended does not count, whoever asked for it: nobody expects a step then."""
    begun = any(stage.step > 0 or stage.state == "Succeeded" for stage in draft.status.stages)
    start = draft.status.start_time
    suspended = find_condition(draft, Condition.SUSPENDED)
    if begun or start is None or draft.spec.suspend or (suspended is not None and suspended.status == "True"):
        return
    if suspended is not None:
        start = max(start, suspended.last_transition_time)
    if draft.queued:
        admitted = find_condition(draft, Condition.QUOTA_RESERVED)
        if admitted is None or (admitted.status != "True" and admitted.reason != Reason.NOT_QUEUED):
            return  # a queue may be long, and that is its right
        start = max(start, admitted.last_transition_time)
    left = start + timedelta(seconds=limit) - draft.now
    if left > timedelta(0):
        draft.look_again(left.total_seconds())
    elif draft.confirmed(Reason.START_DEADLINE_EXCEEDED):
        fail_run(draft, Reason.START_DEADLINE_EXCEEDED, Message.START_DEADLINE.text(limit=limit))
