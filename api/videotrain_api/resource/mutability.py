"""What may be changed after a run was created, and when.

Live fields take effect on a running world, what stages do in the next one. Fields that describe the pods may change
only while there is none, so that all members of a world are alike. Everything else decides what is trained, and is
fixed with the first pods.

The CRD's transition rules, the frozen configuration and the directory of a local run read these lists. Names are those
of the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from videotrain_api.schema import ApiModel, camel_case

LIVE: Final = (
    "activeDeadlineSeconds",
    "budget",
    "elasticity",
    "nodes",
    "priority",
    "startDeadlineSeconds",
    "suspend",
    "ttlSecondsAfterFinished",
)
"""Fields of spec that may change at any time; also LIVE_FAILURE_POLICY and `nodes` of each stage."""
WHILE_NO_PODS: Final = ("image", "imagePullPolicy", "pool", "queue")
"""Fields of spec that may change while the run holds no pod: it is suspended, or was never accepted; also `pool` of a
stage that has one."""
FROZEN_ANEW: Final = ("checkpoint",)
"""Fields of spec that may change at any time and are frozen anew then: a running stage ends its generation at the next
checkpoint, and the next one does what was edited; also what stages do. The operator refuses what would change the order
of samples, or what a complete stage made."""
FIXED: Final = (
    "autoencoder",
    "dataset",
    "logEverySteps",
    "model",
    "seed",
    "storage",
    "textEncoder",
    "tracking",
)
"""Fields of spec that never change. podTemplate is fixed as well, but CEL cannot look into it: the operator tells."""
FIXED_POOL: Final = ("gpusPerNode", "gpuResource")
"""Fields of a pool that not even a suspended run may change, nor the currency: the bill and the world sizes rest on
them."""
FIXED_FAILURE_POLICY: Final = ("hangSeconds", "startSeconds", "graceSeconds")
"""Fields of failurePolicy that are part of running pods."""
LIVE_FAILURE_POLICY: Final = ("limits", "rules", "sameStepLimit")
"""All others of failurePolicy: they may change at any time."""


def without_live(spec: dict[str, Any]) -> dict[str, Any]:
    """A copy of a spec as JSON, complete with defaults, without what may change at any time."""
    rest = {name: value for name, value in spec.items() if name not in LIVE}
    policy = spec["failurePolicy"].items()
    rest["failurePolicy"] = {name: value for name, value in policy if name not in LIVE_FAILURE_POLICY}
    rest["stages"] = [{name: value for name, value in stage.items() if name != "nodes"} for stage in spec["stages"]]
    return rest


def without_changeable(spec: dict[str, Any]) -> dict[str, Any]:
    """The same without what may change while there is no pod, too."""
    rest = {name: value for name, value in without_live(spec).items() if name not in WHILE_NO_PODS}
    rest["pool"] = {name: spec["pool"][name] for name in (*FIXED_POOL, "currency")}
    for stage in rest["stages"]:
        if stage["pool"] is not None:
            stage["pool"] = {name: stage["pool"][name] for name in FIXED_POOL}
    return rest


def attributes(kind: type[ApiModel], names: Sequence[str]) -> tuple[str, ...]:
    """The Python names of fields that are named as on the wire."""
    of_wire = {camel_case(name): name for name in kind.model_fields}
    return tuple(of_wire[name] for name in names)
