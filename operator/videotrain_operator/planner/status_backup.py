"""The second copy of what must not be forgotten.

The status is written by one party and can be removed by any that may write it. What no pod and no checkpoint can tell
(how often the run was restarted, which stages are complete, that it is over) is kept in the ledger, too, and the bill
of a lost ledger is taken over from the status. A generation number in use is on the pods and wins over both.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.render.names import ledger_name
from videotrain_api.resource.run_defaults import HeldDefaults
from videotrain_api.resource.status import RestartCounts, RunStatus
from videotrain_api.resource.stored_status import implausible
from videotrain_api.schema import ApiModel, ManifestError
from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft

_NUMBERS = ("pod_groups_made", "same_step_deaths", "last_death_step", "active_microseconds")
_TIMES = ("start_time", "completion_time")
_COUNTS = ("restarts", "restarts_in_stage")
OUTCOMES: Final = (Condition.COMPLETE, Condition.FAILED)
FIELDS_NAMED: Final = 5
"""Unreadable fields that a message lists."""
YOUNG_SECONDS: Final = 40.0
"""A run whose first world is younger may have no status yet: where runs wait it comes half a minute after the roster,
and whoever is to write it may be killed."""


def status_backup(draft: Draft) -> dict[str, Any]:
    """What the ledger keeps of the status; changes only when something ends or begins."""
    status = draft.status
    over = [find_condition(draft, kind) for kind in OUTCOMES]
    outcome = next((c for c in over if c is not None and c.status == "True"), None)
    stages = {s.name: s.step for s in status.stages if s.state == "Succeeded"}
    kept: dict[str, Any] = {name: getattr(status, name) for name in _NUMBERS}
    kept["generation"] = status.generation
    kept |= {name: getattr(status, name).to_wire() for name in _COUNTS}
    kept |= {name: at.isoformat() for name in _TIMES if (at := getattr(status, name)) is not None}
    kept["stages"] = stages
    kept["config_map"] = status.config_map
    kept["begun"] = [s.name for s in status.stages if s.state == "Running"]
    if status.defaults is not None:
        kept["defaults"] = status.defaults.to_wire()
    if outcome is not None:
        kept["outcome"] = {"type": outcome.type, "reason": outcome.reason, "message": outcome.message}
    return kept


class _Outcome(ApiModel):
    type: str
    reason: str
    message: str = ""


class _Kept(ApiModel):
    """What `status_backup` wrote, as far as it is needed again; fields of other versions are passed over."""

    model_config = ApiModel.model_config | {"extra": "ignore"}

    generation: int
    pod_groups_made: int = 0
    same_step_deaths: int = 0
    last_death_step: int | None = None
    active_microseconds: int = 0
    restarts: RestartCounts = RestartCounts()
    restarts_in_stage: RestartCounts = RestartCounts()
    start_time: datetime | None = None
    completion_time: datetime | None = None
    stages: dict[str, int] | None = None
    config_map: str | None = None
    begun: tuple[str, ...] = ()
    defaults: HeldDefaults | None = None
    outcome: _Outcome | None = None


def kept_config_map(ledger: Mapping[str, Any] | None) -> str | None:
    """Name of the config map that a run was frozen in, as its ledger knows it."""
    kept = (ledger or {}).get("run")
    name = kept.get("config_map") if isinstance(kept, Mapping) else None
    return name if isinstance(name, str) else None


def _kept(draft: Draft) -> _Kept | None:
    """What the ledger knows of a status of which something is missing; None if nothing is, or it does not know."""
    if draft.before != RunStatus() and not draft.unreadable:
        return None
    try:
        kept = _Kept.from_wire((draft.observed.ledger or {}).get("run"))
    except ManifestError:
        return None
    return None if implausible(kept) else kept


def restore_generation_number(draft: Draft) -> None:
    """Go on counting generations where the ledger stopped, once the world that lives is taken over from its pods."""
    kept = _kept(draft)
    if kept is not None:
        draft.update(generation=max(draft.status.generation, kept.generation))


def restore_status(draft: Draft) -> None:
    """Take from the ledger what a status forgot that somebody emptied, or of which something cannot be read."""
    if draft.unreadable:
        fields = ", ".join(f"status.{path}" for path in draft.unreadable[:FIELDS_NAMED])
        draft.tell("Warning", Reason.STATUS_LOST, Message.STATUS_UNREADABLE.text(fields=fields))
    kept = _kept(draft)
    if kept is None:
        return
    status = draft.status
    draft.update(ledger=ledger_name(draft.run.metadata.name))
    draft.update(**{name: _larger(getattr(status, name), getattr(kept, name)) for name in _NUMBERS})
    draft.update(**{name: getattr(status, name) or getattr(kept, name) for name in _TIMES})
    draft.update(defaults=status.defaults or kept.defaults)
    for name in _COUNTS:
        now, then = getattr(status, name), getattr(kept, name)
        more = {cause: max(getattr(now, cause), getattr(then, cause)) for cause in RestartCounts.model_fields}
        draft.update(**{name: RestartCounts(**more)})
    for name, step in (kept.stages or {}).items():
        draft.update_stage(name, state="Succeeded", step=step)
    for stage in [stage for stage in status.stages if stage.name in kept.begun and stage.state == "Pending"]:
        draft.update_stage(stage.name, state="Running")
    if kept.outcome is not None and kept.outcome.type in OUTCOMES and not draft.finished():
        set_condition(draft, Condition(kept.outcome.type), True, kept.outcome.reason, kept.outcome.message)
    if not draft.unreadable and not _is_first(draft, kept):
        draft.tell("Warning", Reason.STATUS_LOST, Message.STATUS_LOST)


def _is_first(draft: Draft, kept: _Kept) -> bool:
    """The status that is missing may never have been stored."""
    roster = draft.observed.roster
    if kept.generation > 1 or kept.completion_time is not None or any(kept.restarts.model_dump().values()):
        return False
    begun = roster.created_at if roster is not None else None
    return begun is None or (draft.now - begun).total_seconds() < YOUNG_SECONDS


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
