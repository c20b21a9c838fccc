"""Releasing the nodes and taking them back.

Three parties may want the nodes released: the user (`spec.suspend`), the budget, and a queue. Each keeps its own
word for it, so that one never undoes what another wants.
"""

from __future__ import annotations

from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import SUSPENDED, Draft
from videotrain_operator.planner.generations import stop_workers


def suspend_or_resume(draft: Draft) -> None:
    """Stop the workers in good order when the nodes are to be released; pods go when they are idle."""
    if draft.finished():
        return
    if draft.spec.suspend:
        draft.suspend_reason = "SuspendedByUser"
    reason = draft.suspend_reason
    if reason is None:
        _resume(draft)
        return
    if set_condition(draft, Condition.SUSPENDED, status=True, reason=reason):
        draft.tell("Normal", "Suspended", f"{reason}: saving and releasing all nodes")
    if draft.live is not None:
        draft.end_generation("drained", SUSPENDED, reason)
        return
    last = draft.last
    if last is not None and last.end_reason not in (SUSPENDED, "Completed"):
        draft.update_last(end_reason=SUSPENDED)
    stop_workers(draft)


def _resume(draft: Draft) -> None:
    old = find_condition(draft, Condition.SUSPENDED)
    if old is None or old.status != "True":
        return
    set_condition(draft, Condition.SUSPENDED, status=False, reason="Resumed")
    draft.tell("Normal", "Resumed", f"{old.reason} no longer holds")
