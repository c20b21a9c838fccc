"""The second copy of what must not be forgotten.

The status is written by one party and can be removed by any that may write it. What no pod and no checkpoint can tell
(how often the run was restarted, which stages are complete, that it is over) is kept in the ledger, too, and the bill
of a lost ledger is taken over from the status. A generation number in use is on the pods and wins over both.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from videotrain_api.reasons import Message, Reason
from videotrain_api.render.names import ledger_name
from videotrain_api.resource.status import RestartCounts, RunStatus
from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft

_NUMBERS = ("pod_groups_made", "same_step_deaths", "last_death_step", "active_microseconds")
_TIMES = ("start_time", "completion_time")
_COUNTS = ("restarts", "restarts_in_stage")


def status_backup(draft: Draft) -> dict[str, Any]:
    """What the ledger keeps of the status; changes only when something ends or begins."""
    status = draft.status
    over = [find_condition(draft, kind) for kind in (Condition.COMPLETE, Condition.FAILED)]
    outcome = next((c for c in over if c is not None and c.status == "True"), None)
    stages = {s.name: s.step for s in status.stages if s.state == "Succeeded"}
    kept: dict[str, Any] = {name: getattr(status, name) for name in _NUMBERS}
    kept["generation"] = status.generation
    kept |= {name: getattr(status, name).to_wire() for name in _COUNTS}
    kept |= {name: at.isoformat() for name in _TIMES if (at := getattr(status, name)) is not None}
    kept["stages"] = stages
    if outcome is not None:
        kept["outcome"] = {"type": outcome.type, "reason": outcome.reason, "message": outcome.message}
    return kept


def _kept(draft: Draft) -> dict[str, Any] | None:
    """What the ledger knows of a status that is empty now."""
    kept: dict[str, Any] | None = (draft.observed.ledger or {}).get("run")
    return kept if draft.before == RunStatus() else None


def restore_generation_number(draft: Draft) -> None:
    """Go on counting generations where the ledger stopped, once the world that lives is taken over from its pods."""
    kept = _kept(draft)
    if kept is not None:
        draft.update(generation=max(draft.status.generation, kept["generation"]))


def restore_status(draft: Draft) -> None:
    """Take what an emptied status forgot from the ledger."""
    kept = _kept(draft)
    if kept is None:
        return
    draft.update(ledger=ledger_name(draft.run.metadata.name), **{name: kept[name] for name in _NUMBERS})
    draft.update(**{name: RestartCounts.from_wire(kept[name]) for name in _COUNTS})
    draft.update(**{name: datetime.fromisoformat(kept[name]) for name in _TIMES if name in kept})
    for name, step in kept["stages"].items():
        draft.update_stage(name, state="Succeeded", step=step)
    outcome = kept.get("outcome")
    if outcome is not None:
        set_condition(draft, Condition(outcome["type"]), True, outcome["reason"], outcome["message"])
    draft.tell("Warning", Reason.STATUS_LOST, Message.STATUS_LOST)
