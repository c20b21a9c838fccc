"""Conditions: what holds, since when, and why."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from videotrain_api.reasons import Reason
from videotrain_api.resource.status import ConditionStatus
from videotrain_api.resource.stored_size import cut
from videotrain_api.resource.stored_status import read_status, with_unknown_fields
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.draft import LONGEST_MESSAGE, Draft

_LONGEST_LETTER: Final = 6
"""Bytes, see `stored_size`: a message of so many times fewer letters than LONGEST_MESSAGE is never cut."""
_ORDER: Final = {member.value: place for place, member in enumerate(Condition)}


def set_condition(draft: Draft, kind: Condition, status: bool | None, reason: str, message: str = "") -> bool:
    """Set a condition of the draft's status.

    Args:
        draft: the pass.
        kind: type of the condition.
        status: True, False, or None for Unknown.
        reason: a Reason or GenerationReason; another word only if Kubernetes gave it.
        message: for people; cut at LONGEST_MESSAGE.

    Returns:
        Whether the status flipped or the condition is new.
    """
    old = find_condition(draft, kind)
    if old is not None and _is_told(draft, old, status, reason, message):
        return False
    new = make_condition(kind, status, reason, message, generation=draft.run.metadata.generation, now=draft.now)
    draft.update(conditions=with_condition(draft.status.conditions, new))
    return old is None or old.status != new.status


def _is_told(draft: Draft, old: ConditionStatus, status: bool | None, reason: str, message: str) -> bool:
    """Most passes come to what stands there, in its place, and need make nothing of it."""
    same = (old.status, old.reason, old.message) == (_word(status), str(reason), str(message))
    if not same or old.observed_generation != draft.run.metadata.generation:
        return False
    types = [c.type for c in draft.status.conditions]
    places = [_ORDER.get(each, len(_ORDER)) for each in types]
    in_place = places == sorted(places) and types.count(old.type) == 1
    return in_place and len(old.message) * _LONGEST_LETTER <= LONGEST_MESSAGE


def _word(status: bool | None) -> str:
    return "Unknown" if status is None else str(status)


def find_condition(draft: Draft, kind: Condition) -> ConditionStatus | None:
    """The condition as it stands in this pass."""
    return next((c for c in draft.status.conditions if c.type == kind), None)


def with_condition(conditions: Sequence[ConditionStatus], new: ConditionStatus) -> list[ConditionStatus]:
    """The list with `new` in its place; the transition time moves only when the status flips.

    Conditions of others, which this version does not know, are kept and come last.
    """
    old = next((c for c in conditions if c.type == new.type), None)
    if old is not None and old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    others = [c for c in conditions if c.type != new.type]
    return sorted([*others, new], key=lambda c: _ORDER.get(c.type, len(_ORDER)))


def reconciled(conditions: Sequence[ConditionStatus], generation: int | None, now: datetime) -> list[ConditionStatus]:
    """The conditions, with Reconciled true again if passes had failed: whoever plans got so far."""
    if not any(c.type == Condition.RECONCILED and c.status == "False" for c in conditions):
        return list(conditions)
    new = make_condition(Condition.RECONCILED, True, Reason.PASSES_SUCCEED, generation=generation, now=now)
    return with_condition(conditions, new)


def make_condition(
    kind: Condition, status: bool | None, reason: str, message: str = "", *, generation: int | None, now: datetime
) -> ConditionStatus:
    """A condition that flipped now."""
    return ConditionStatus(
        type=kind.value,
        status=_word(status),
        reason=str(reason),
        message=cut(str(message), LONGEST_MESSAGE),
        observed_generation=generation,
        last_transition_time=now,
    )


def stored_with_condition(run: Json, kind: Condition, status: bool, reason: str, message: str, now: datetime) -> Json:
    """The stored status of a run with one condition set, for when no pass decides about it; all else stays as it is.

    Args:
        run: the object as it is stored; its status may hold anything.
        kind: type of the condition.
        status: whether it holds.
        reason: a Reason; another word only if Kubernetes gave it.
        message: for people; cut at LONGEST_MESSAGE.
        now: aware.
    """
    stored = run.get("status")
    new = make_condition(kind, status, reason, message, generation=run["metadata"].get("generation"), now=now)
    conditions = with_condition(read_status(stored).status.conditions, new)
    changed = {"conditions": [condition.to_wire() for condition in conditions]}
    return with_unknown_fields(stored, (stored if isinstance(stored, dict) else {}) | changed)
