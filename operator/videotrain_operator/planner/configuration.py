"""The frozen configuration: resolved once when a run is accepted, and kept whatever is edited later."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any, Final

from videotrain_api.resolve import resolve
from videotrain_api.schema import ManifestError, Problem, camel_case
from videotrain_api.stage_config import StageConfig
from videotrain_api.status import StageStatus
from videotrain_api.trainrun import VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.validation import check
from videotrain_api.vocabulary import Condition
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.render.names import config_map_name

FROZEN_SPEC_KEY: Final = "_spec.json"
"""Key of the frozen spec in the config map; no stage can have that name."""
LIVE_FIELDS: Final = (
    "nodes",
    "budget",
    "suspend",
    "elasticity",
    "active_deadline_seconds",
    "start_deadline_seconds",
    "ttl_seconds_after_finished",
)
THAWED_FIELDS: Final = ("image", "image_pull_policy", "queue")
"""What describes the pods, with the rest of pool: the API server lets it change only while there are none."""
FIXED_POOL_FIELDS: Final = ("gpus_per_node", "gpu_resource", "currency")
LIVE_FAILURE_FIELDS: Final = ("rules", "limits", "same_step_limit")


def effective_run(run: VideoTrainingRun, frozen: dict[str, Any] | None) -> VideoTrainingRun:
    """The run as it is trained: its frozen spec with the present values of the fields that may change."""
    if frozen is None:
        return run
    spec = _parse_spec(_canonical(frozen))
    now = run.spec
    nodes = {stage.name: stage.nodes for stage in now.stages}
    policy = {name: getattr(now.failure_policy, name) for name in LIVE_FAILURE_FIELDS}
    changes: dict[str, Any] = {name: getattr(now, name) for name in (*LIVE_FIELDS, *THAWED_FIELDS)}
    changes["pool"] = now.pool.model_copy(update={name: getattr(spec.pool, name) for name in FIXED_POOL_FIELDS})
    changes["failure_policy"] = spec.failure_policy.model_copy(update=policy)
    changes["stages"] = [stage.model_copy(update={"nodes": nodes.get(stage.name)}) for stage in spec.stages]
    merged = spec.model_copy(update=changes)
    return run if merged == now else run.model_copy(update={"spec": merged})


def config_data(run: VideoTrainingRun) -> dict[str, str]:
    """Data of the frozen config map: a StageConfig per stage, and the spec that they were made from.

    Raises:
        ManifestError: the run cannot be resolved.
    """
    return dict(_config_data(_manifest(run)))


def stage_configs(run: VideoTrainingRun) -> tuple[StageConfig, ...]:
    """The frozen stage configurations of a run; computed once for the same spec.

    Raises:
        ManifestError: the run cannot be resolved.
    """
    return _resolved(_manifest(run))


def data_hash(data: dict[str, str]) -> str:
    """First 16 hex digits of the SHA-256 of a config map's data."""
    return hashlib.sha256(_canonical(data).encode()).hexdigest()[:16]


def accept(draft: Draft, present: VideoTrainingRunSpec) -> bool:
    """Freeze the configuration of a new run; tell about edits of a frozen one.

    Args:
        draft: the pass.
        present: the spec as it stands now.

    Returns:
        False if the run cannot be accepted.
    """
    if draft.finished:
        return True
    if draft.status.config_map is None:
        return _freeze(draft)
    if draft.status.config_map not in draft.observed.config_maps and not _restore(draft):
        return True
    if _edited(draft) and (problems := _problems(_manifest(draft.run))):
        refuse(draft, ManifestError(list(problems)))
        draft.held = True
        return True
    edits = _frozen_edits(draft.spec, present)
    if edits:
        message = f"{', '.join(edits)} cannot change while the run exists; it goes on with what it was accepted with"
        old = find_condition(draft, Condition.ACCEPTED)
        if old is None or old.message != message:
            draft.tell("Warning", "EditIgnored", message)
        set_condition(draft, Condition.ACCEPTED, status=True, reason="EditIgnored", message=message)
    else:
        set_condition(draft, Condition.ACCEPTED, status=True, reason="Accepted")
    return True


def refuse(draft: Draft, error: ManifestError) -> None:
    """Put on record why the manifest cannot be accepted."""
    old = find_condition(draft, Condition.ACCEPTED)
    message = str(error)
    if old is None or old.message != message[:1000]:
        draft.tell("Warning", "Invalid", message)
    set_condition(draft, Condition.ACCEPTED, status=False, reason="Invalid", message=message)


def _edited(draft: Draft) -> bool:
    """The spec is not the one that was checked last."""
    refused = any(c.type == Condition.ACCEPTED and c.status == "False" for c in draft.before.conditions)
    return refused or draft.before.observed_generation != (draft.run.metadata.generation or 0)


def _freeze(draft: Draft) -> bool:
    try:
        problems = _problems(_manifest(draft.run))
        if problems:
            raise ManifestError(list(problems))  # noqa: TRY301  one way out for both kinds of refusal
        data = config_data(draft.run)
    except ManifestError as error:
        refuse(draft, error)
        return False
    draft.config_data = data
    stages = [
        StageStatus(
            name=config.stage.name,
            task=config.stage.task,
            state="Pending",
            config_hash=config.hash(),
            total_steps=config.stage.total_steps,
        )
        for config in stage_configs(draft.run)
    ]
    draft.update(config_map=config_map_name(draft.run, data_hash(data)), stages=stages)
    set_condition(draft, Condition.ACCEPTED, status=True, reason="Accepted")
    draft.tell("Normal", "Accepted", f"stages: {', '.join(stage.name for stage in stages)}")
    return True


def _restore(draft: Draft) -> bool:
    """The config map was deleted by hand: make it again, if the present spec still gives the same."""
    try:
        data = config_data(draft.run)
    except ManifestError:
        data = {}
    if config_map_name(draft.run, data_hash(data)) == draft.status.config_map:
        draft.config_data = data
        return True
    draft.can_create_pods = False
    message = (
        f"config map {draft.status.config_map} is gone and the spec was edited since it was made, so it cannot be made "
        "again; undo the edits, or delete the run and create it anew"
    )
    if set_condition(draft, Condition.ACCEPTED, status=False, reason="FrozenConfigLost", message=message):
        draft.tell("Warning", "FrozenConfigLost", message)
    return False


def _frozen_edits(frozen: VideoTrainingRunSpec, present: VideoTrainingRunSpec) -> list[str]:
    fields = type(present).model_fields.items()
    return [f"spec.{f.alias or name}" for name, f in fields if getattr(frozen, name) != getattr(present, name)]


def _manifest(run: VideoTrainingRun) -> str:
    """All that the configuration depends on, with nulls: a null may differ from a field's default."""
    identity = {"name": run.metadata.name, "namespace": run.metadata.namespace}
    return _canonical({"metadata": identity, "spec": run.spec.model_dump(mode="json", by_alias=True)})


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=256)
def _parse_spec(canonical: str) -> VideoTrainingRunSpec:
    return VideoTrainingRunSpec.from_wire(json.loads(canonical))


@lru_cache(maxsize=256)
def _resolved(canonical: str) -> tuple[StageConfig, ...]:
    return tuple(resolve(VideoTrainingRun.from_wire(json.loads(canonical))))


@lru_cache(maxsize=256)
def _problems(canonical: str) -> tuple[Problem, ...]:
    return tuple(check(VideoTrainingRun.from_wire(json.loads(canonical))))


@lru_cache(maxsize=256)
def _config_data(canonical: str) -> tuple[tuple[str, str], ...]:
    configs = _resolved(canonical)
    spec = json.loads(canonical)["spec"]
    for name in (*LIVE_FIELDS, *THAWED_FIELDS):
        del spec[camel_case(name)]
    pool = {camel_case(name): spec["pool"][camel_case(name)] for name in FIXED_POOL_FIELDS}
    spec["pool"] = pool | {"pricePerGpuHour": "0"}  # required, and always taken from the present spec
    for name in LIVE_FAILURE_FIELDS:
        del spec["failurePolicy"][camel_case(name)]
    for stage in spec["stages"]:
        del stage["nodes"]
    files = {f"{config.stage.name}.json": config.canonical_json() for config in configs}
    return tuple((files | {FROZEN_SPEC_KEY: _canonical(spec)}).items())
