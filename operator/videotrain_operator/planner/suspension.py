"""Releasing the nodes and taking them back.

Five parties may want the nodes released: the user (`spec.suspend`), the run's budget, that of its team, an object store
that denies access, and a queue. Each keeps its own word for it, so that one never undoes what another wants.
"""

from __future__ import annotations

from videotrain_api.reasons import Message, Reason
from videotrain_api.vocabulary import Condition, GenerationReason
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.denial import denial_text
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.generations import stop_workers


def suspend_or_resume(draft: Draft) -> None:
    """Stop the workers in good order when the nodes are to be released; pods go when they are idle."""
    if draft.finished():
        return
    if draft.spec.suspend:
        draft.suspend_reason = Reason.SUSPENDED_BY_USER
    reason = draft.suspend_reason
    if reason is None:
        _resume(draft)
        return
    denial = draft.status.storage_denied if reason == Reason.STORAGE_DENIED else None
    message = denial_text(denial) if denial else ""
    if set_condition(draft, Condition.SUSPENDED, status=True, reason=reason, message=message):
        draft.tell("Normal", Reason.SUSPENDED, Message.SUSPENDING.text(reason=reason))
    if draft.live is not None:
        draft.end_generation("drained", Reason.SUSPENDED, reason)
        return
    last = draft.last
    if last is not None and last.end_reason not in (Reason.SUSPENDED, Reason.COMPLETED):
        draft.update_last(end_reason=str(Reason.SUSPENDED))
    stop_workers(draft)


def _resume(draft: Draft) -> None:
    old = find_condition(draft, Condition.SUSPENDED)
    if old is None or old.status != "True":
        return
    set_condition(draft, Condition.SUSPENDED, status=False, reason=GenerationReason.RESUMED)
    draft.tell("Normal", GenerationReason.RESUMED, Message.RESUMED.text(reason=old.reason))
