"""Rules about updates: what the API server refuses to change, and what its refusal tells to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from videotrain_api.crd.cel import CelRule, same
from videotrain_api.resource.mutability import (
    FIXED,
    FIXED_FAILURE_POLICY,
    FIXED_POOL,
    LIVE,
    LIVE_FAILURE_POLICY,
    WHILE_NO_PODS,
)
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import TASKS, Stage
from videotrain_api.resource.trainrun import FailurePolicy, VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import ApiModel

_ANEW: Final = (
    f"delete the run and create it anew (a running one takes changes of {', '.join(LIVE)} and of "
    f"{', '.join(f'failurePolicy.{name}' for name in LIVE_FAILURE_POLICY)})"
)
_SUSPEND: Final = "set suspend: true, wait for phase Suspended, change it, then set suspend: false"
_HOLDS_NO_POD: Final = (
    "has(self.status) && has(self.status.phase) && (self.status.phase == 'Invalid' || "
    "oldSelf.spec.suspend && self.status.phase == 'Suspended')"
)


def _fixed(field: str, advice: str = _ANEW) -> CelRule:
    return CelRule(same(field), f"{field} cannot change; {advice}", f".{field}", "FieldValueForbidden")


def _while_no_pods(field: str) -> CelRule:
    rule = f"{_HOLDS_NO_POD} || {same(f'spec.{field}')}"
    message = f"{field} cannot change while the run may hold pods: {_SUSPEND}"
    return CelRule(rule, message, f".spec.{field}", "FieldValueForbidden")


TRANSITIONS: Final[Mapping[type[ApiModel], tuple[CelRule, ...]]] = {
    VideoTrainingRun: tuple(_while_no_pods(field) for field in WHILE_NO_PODS),
    VideoTrainingRunSpec: (
        *(_fixed(field) for field in FIXED),
        CelRule(
            "self.stages.map(s, s.name) == oldSelf.stages.map(s, s.name)",
            f"stages cannot be added, removed or moved; {_ANEW}",
            ".stages",
            "FieldValueForbidden",
        ),
    ),
    Pool: tuple(_fixed(field, "delete the run and create it anew") for field in FIXED_POOL),
    FailurePolicy: tuple(_fixed(field) for field in FIXED_FAILURE_POLICY),
    Stage: (
        CelRule("self.task == oldSelf.task", f"task cannot change; {_ANEW}", ".task", "FieldValueForbidden"),
        *(_fixed(member, "of a stage only nodes may; delete the run and create it anew") for member in TASKS),
    ),
}
"""Rules about updates, by the model at which they stand."""
