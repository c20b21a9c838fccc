"""A simulated run tells of each stage the plan, what was expected when it began, and why it cost another sum."""

from __future__ import annotations

from typing import NoReturn

import pytest
from support.planner_builders import manifest, train_stage

from videotrain_api.money import parse_micros
from videotrain_api.schema import ManifestError
from videotrain_operator.planner import forecast
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import replay
from videotrain_operator.simulation.world import Pace


async def test_when_a_stage_is_over_its_differences_sum_to_what_it_cost_beyond_its_plan() -> None:
    stages = [train_stage("first", 20), train_stage("second", 30)]
    cluster = SimulatedCluster(manifest(stages=stages), nodes=3, pace=Pace(every_steps=5))
    seen: list[dict[str, str | None]] = []

    def note(_: int, outcome: object) -> None:
        cost = outcome.plan.status.cost  # type: ignore[attr-defined]
        seen.append({one.name: one.plan.forecast for one in cost.stages if one.plan} if cost else {})

    script = {14: lambda c: c.lose_node("node-1"), 20: lambda c: c.restore_node("node-1")}
    status = await replay(cluster, script, seconds=400, after_pass=note)
    assert status.phase == "Succeeded" and status.cost is not None
    for stage in status.cost.stages:
        assert sum(stage.micros_by_cause.values()) == stage.total_micros
        assert stage.plan is not None
        planned = parse_micros(stage.plan.total)
        assert sum(stage.plan.difference_micros.values()) == stage.total_micros - planned
        assert stage.plan.real_node_seconds_per_step and stage.plan.real_node_seconds_per_step > 0
    first, second = status.cost.stages
    assert first.plan is not None and "infrastructure" in first.micros_by_cause
    assert first.plan.difference_micros["failures"] > 0 >= second.micros_by_cause.get("infrastructure", 0)
    told = [one["second"] for one in seen if one.get("second")]
    assert told and set(told) == {second.plan.forecast}, "what was expected when it began is kept"  # type: ignore[union-attr]


async def test_a_finished_run_whose_model_another_version_does_not_know_is_looked_at_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = SimulatedCluster(manifest(stages=[train_stage("first", 20)]), nodes=3, pace=Pace(every_steps=5))
    assert (await replay(cluster, {}, seconds=200)).phase == "Succeeded"

    def unknown(_: object) -> NoReturn:
        raise ManifestError([])

    monkeypatch.setattr(forecast, "planned_stages", unknown)
    forecast._models.cache_clear()
    status = await replay(cluster, {}, seconds=3)
    assert status.phase == "Succeeded" and status.cost is not None
    assert [(one.name, one.plan) for one in status.cost.stages] == [("first", None)]


async def test_nodes_that_cost_nothing_tell_no_time_of_a_step() -> None:
    pool = {"gpusPerNode": 2, "pricePerGpuHour": "0"}
    cluster = SimulatedCluster(
        manifest(stages=[train_stage("first", 20)], pool=pool), nodes=3, pace=Pace(every_steps=5)
    )
    status = await replay(cluster, {}, seconds=200)
    assert status.phase == "Succeeded" and status.cost is not None
    (stage,) = status.cost.stages
    assert stage.plan is not None and stage.plan.real_node_seconds_per_step is None
