"""The frozen configuration: resolved once when a run is accepted, and kept whatever is edited later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from videotrain_api.config.resolve import resolve
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.mutability import (
    FIXED_POOL,
    LIVE,
    LIVE_FAILURE_POLICY,
    WHILE_NO_PODS,
    attributes,
    without_changeable,
)
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.stages import Stage
from videotrain_api.resource.trainrun import FailurePolicy, VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import Problem
from videotrain_api.validation import check
from videotrain_api.vocabulary import FROZEN_SPEC_KEY

_LIVE: Final = attributes(VideoTrainingRunSpec, LIVE)
_WHILE_NO_PODS: Final = attributes(VideoTrainingRunSpec, WHILE_NO_PODS)
_FIXED_POOL: Final = attributes(Pool, FIXED_POOL)
_LIVE_FAILURE_POLICY: Final = attributes(FailurePolicy, LIVE_FAILURE_POLICY)


def effective_run(run: VideoTrainingRun, frozen: Mapping[str, Any] | None) -> VideoTrainingRun:
    """The run as it is trained: its frozen spec with the present values of the fields that may change."""
    if frozen is None:
        return run
    key = id(run.spec), id(frozen)
    if key not in _merged:
        _make_room(_merged)
        _merged[key] = run.spec, frozen, _merge(run, frozen)
    merged = _merged[key][2]
    return run if merged is run.spec else run.model_copy(update={"spec": merged})


_KEPT: Final = 16
_merged: dict[tuple[int, int], tuple[VideoTrainingRunSpec, Mapping[str, Any], VideoTrainingRunSpec]] = {}
_manifests: dict[tuple[int, str, str | None], tuple[VideoTrainingRunSpec, str]] = {}
"""The newest answers, by what was asked; it is kept with them, or its place in memory could be that of another. Nobody
changes a spec, and who asks again, as a pass that freezes a configuration and a simulation do, need not wait."""


def _make_room(answers: dict[Any, Any]) -> None:
    while len(answers) >= _KEPT:
        del answers[next(iter(answers))]


def _merge(run: VideoTrainingRun, frozen: Mapping[str, Any]) -> VideoTrainingRunSpec:
    """The run's own spec if it is that of the frozen one."""
    spec = _parse_spec(_canonical(dict(frozen)))
    now = run.spec
    stages = {stage.name: stage for stage in now.stages}
    policy = {name: getattr(now.failure_policy, name) for name in _LIVE_FAILURE_POLICY}
    changes: dict[str, Any] = {name: getattr(now, name) for name in (*_LIVE, *_WHILE_NO_PODS)}
    changes["pool"] = now.pool.model_copy(update=_fixed_parts(spec.pool) | {"currency": spec.pool.currency})
    changes["failure_policy"] = spec.failure_policy.model_copy(update=policy)
    changes["stages"] = [_effective_stage(stage, stages.get(stage.name)) for stage in spec.stages]
    merged = spec.model_copy(update=changes)
    return now if merged == now else merged


def _effective_stage(frozen: Stage, now: Stage | None) -> Stage:
    pool = frozen.pool
    if pool is not None and now is not None and now.pool is not None:
        pool = now.pool.model_copy(update=_fixed_parts(pool))
    return frozen.model_copy(update={"nodes": now.nodes if now else None, "pool": pool})


def _fixed_parts(pool: Pool) -> dict[str, Any]:
    return {name: getattr(pool, name) for name in _FIXED_POOL}


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


def problems_in(run: VideoTrainingRun) -> tuple[Problem, ...]:
    """What `videotrain_api.validation.check` finds wrong with a run; computed once for the same spec."""
    return _problems(_manifest(run))


def data_hash(data: dict[str, str]) -> str:
    """First 16 hex digits of the SHA-256 of a config map's data."""
    return hashlib.sha256(_canonical(data).encode()).hexdigest()[:16]


def _manifest(run: VideoTrainingRun) -> str:
    """All that the configuration depends on, with nulls: a null may differ from a field's default."""
    head = run.metadata
    key = id(run.spec), head.name, head.namespace
    if key not in _manifests:
        identity = {"name": head.name, "namespace": head.namespace}
        text = _canonical({"metadata": identity, "spec": run.spec.model_dump(mode="json", by_alias=True)})
        _make_room(_manifests)
        _manifests[key] = run.spec, text
    return _manifests[key][1]


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=256)
def _parse_spec(canonical: str) -> VideoTrainingRunSpec:
    return VideoTrainingRunSpec.from_wire(json.loads(canonical))


@lru_cache(maxsize=_KEPT)
def _parse_run(canonical: str) -> VideoTrainingRun:
    return VideoTrainingRun.from_wire(json.loads(canonical))


@lru_cache(maxsize=256)
def _resolved(canonical: str) -> tuple[StageConfig, ...]:
    return tuple(resolve(_parse_run(canonical)))


@lru_cache(maxsize=256)
def _problems(canonical: str) -> tuple[Problem, ...]:
    return tuple(check(_parse_run(canonical)))


@lru_cache(maxsize=256)
def _config_data(canonical: str) -> tuple[tuple[str, str], ...]:
    configs = _resolved(canonical)
    spec = without_changeable(json.loads(canonical)["spec"])
    files = {f"{config.stage.name}.json": config.canonical_json() for config in configs}
    return tuple((files | {FROZEN_SPEC_KEY: _canonical(spec)}).items())
