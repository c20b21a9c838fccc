"""Rules about updates: what the API server refuses to change, and what its refusal tells to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic_core import PydanticUndefined

from videotrain_api.crd.cel import CelRule, same
from videotrain_api.resource.mutability import (
    FIXED,
    FIXED_FAILURE_POLICY,
    FIXED_POOL,
    LIVE,
    LIVE_FAILURE_POLICY,
    WHILE_NO_PODS,
)
from videotrain_api.resource.pool import Pool, RunPool
from videotrain_api.resource.stages import Stage
from videotrain_api.resource.trainrun import FailurePolicy, VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import ApiModel

_ANEW: Final = (
    f"delete the run and create it anew (a running one takes changes of {', '.join(LIVE)} and of "
    f"{', '.join(f'failurePolicy.{name}' for name in LIVE_FAILURE_POLICY)})"
)
_NEW: Final = "delete the run and create it anew"
_SUSPEND: Final = "set suspend: true, wait for phase Suspended, change it, then set suspend: false"
_HOLDS_NO_POD: Final = (
    "has(self.status) && has(self.status.phase) && (self.status.phase == 'Invalid' || "
    "oldSelf.spec.suspend && self.status.phase == 'Suspended')"
)


def _always_there(model: type[ApiModel], field: str) -> bool:
    """It is required or has a default, which the API server fills in also where it was stored without."""
    # Not from the model's JSON schema, which takes 40 ms: every command pays for this module.
    info = next(info for name, info in model.model_fields.items() if field == (info.alias or name))
    return info.is_required() or info.default not in (None, [], {}, PydanticUndefined)


def _fixed(model: type[ApiModel], field: str, advice: str = _ANEW) -> CelRule:
    rule = same(field, always=_always_there(model, field))
    return CelRule(rule, f"{field} cannot change; {advice}", f".{field}", "FieldValueForbidden")


def _while_no_pods(field: str) -> CelRule:
    # What holds at nearly every write is asked first.
    rule = f"({same(f'spec.{field}', always=_always_there(VideoTrainingRunSpec, field))}) || {_HOLDS_NO_POD}"
    message = f"{field} cannot change while the run may hold pods: {_SUSPEND}"
    return CelRule(rule, message, f".spec.{field}", "FieldValueForbidden")


def _of_stages(of: str, field: str) -> str:
    return f"{of}.spec.stages.map(s, has(s.{field}) ? [s.{field}] : [])"


TRANSITIONS: Final[Mapping[type[ApiModel], tuple[CelRule, ...]]] = {
    VideoTrainingRun: (
        *(_while_no_pods(field) for field in WHILE_NO_PODS),
        CelRule(
            f"!self.spec.stages.exists(s, has(s.pool)) || "
            f"{_of_stages('self', 'pool')} == {_of_stages('oldSelf', 'pool')} || "
            f"{_HOLDS_NO_POD}",
            f"the pool of a stage cannot change while the run may hold pods: {_SUSPEND}",
            ".spec.stages",
            "FieldValueForbidden",
        ),
    ),
    VideoTrainingRunSpec: (
        *(_fixed(VideoTrainingRunSpec, field) for field in FIXED),
        CelRule(
            "self.stages.map(s, s.name) == oldSelf.stages.map(s, s.name)",
            f"stages cannot be added, removed or moved; {_ANEW}",
            ".stages",
            "FieldValueForbidden",
        ),
    ),
    RunPool: tuple(_fixed(RunPool, field, _NEW) for field in (*FIXED_POOL, "currency")),
    Pool: tuple(_fixed(Pool, field, _NEW) for field in FIXED_POOL),
    FailurePolicy: tuple(_fixed(FailurePolicy, field) for field in FIXED_FAILURE_POLICY),
    Stage: (
        CelRule("self.task == oldSelf.task", f"task cannot change; {_ANEW}", ".task", "FieldValueForbidden"),
        CelRule(
            "has(self.pool) == has(oldSelf.pool)",
            f"a stage cannot get or lose a pool of its own; {_NEW}",
            ".pool",
            "FieldValueForbidden",
        ),
    ),
}
"""Rules about updates, by the model at which they stand."""
