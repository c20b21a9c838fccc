"""The forecast of a run's bill, against what simulated runs cost in the end."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from support.planner_builders import manifest, run_of, train_stage

from videotrain_api.cost.forecast import forecast
from videotrain_api.money import parse_micros
from videotrain_api.resource.status import CostStatus, RunStatus
from videotrain_api.vocabulary import Bucket
from videotrain_operator.planner.forecast import _Rest, _summed
from videotrain_operator.reconcile import Outcome
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import Event, replay
from videotrain_operator.simulation.world import Pace

SECONDS = 400


def stages(*rows: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Train stages by name, micro-batches of a step, and steps."""
    found = []
    for name, micro_batches, steps in rows:
        stage = train_stage(name, steps)
        found.append(stage | {"train": stage["train"] | {"parallel": {"microBatchesPerStep": micro_batches}}})
    return found


def node_seconds(body: dict[str, Any], *, small: float) -> dict[str, float]:
    """Of a step, as modelled, times what makes it `small` for the stage of that name."""
    each = {s.name: s.seconds_per_step * s.nodes for s in forecast(run_of(body)).stages if s.seconds_per_step}
    return {name: seconds * small / each["small"] for name, seconds in each.items()}


async def lived(
    body: dict[str, Any], pace: Mapping[str, float], script: Mapping[int, Event] | None = None, seconds: int = SECONDS
) -> tuple[RunStatus, list[CostStatus]]:
    """The last status of a run, and its bills second by second."""
    told: list[CostStatus] = []

    def note(_: int, outcome: Outcome) -> None:
        if outcome.plan.status.cost is not None:
            told.append(outcome.plan.status.cost)

    cluster = SimulatedCluster(body, nodes=3, pace=Pace(start_seconds=4, every_steps=5, node_seconds=pace))
    return await replay(cluster, script or {}, seconds=seconds, after_pass=note), told


def when_spent(told: list[CostStatus], share: float) -> CostStatus:
    """The first bill with that share of the last one spent."""
    return next(cost for cost in told if cost.total_micros >= share * told[-1].total_micros)


def micros(text: str | None) -> int:
    assert text is not None
    return parse_micros(text)


SMALL, LARGE = stages(("small", 6, 100), ("large", 156, 20))


@pytest.mark.parametrize("order", [[SMALL, LARGE], [LARGE, SMALL]], ids=["dear-last", "dear-first"])
async def test_stages_that_differ_fivefold_are_foreseen_at_a_tenth_of_the_run(order: list[dict[str, Any]]) -> None:
    body = manifest(stages=order)
    pace = node_seconds(body, small=3.0)
    assert pace["large"] > 4.9 * pace["small"]
    last, told = await lived(body, pace)
    assert last.cost is not None and last.cost.forecast == last.cost.total == last.cost.forecast_low
    for share in (0.1, 0.25, 0.5):
        cost = when_spent(told, share)
        assert micros(cost.forecast) == pytest.approx(last.cost.total_micros, rel=0.05)
        assert micros(cost.forecast_low) <= last.cost.total_micros <= micros(cost.forecast_high)
        assert micros(cost.forecast_low) < micros(cost.forecast) < micros(cost.forecast_high)


async def test_what_a_stage_is_expected_to_cost_is_told_with_why() -> None:
    last, told = await lived(manifest(stages=[SMALL, LARGE]), node_seconds(manifest(stages=[SMALL, LARGE]), small=3.0))
    early, late = when_spent(told, 0.1), when_spent(told, 0.9)
    assert [stage.source for stage in early.expected_stages] == ["measured", "modelled"]
    assert [stage.source for stage in late.expected_stages] == ["spent", "measured"]
    assert last.cost is not None
    for before, spent in zip(early.expected_stages, last.cost.stages, strict=True):
        assert micros(before.total) == pytest.approx(spent.total_micros, rel=0.05)


async def test_a_stage_that_is_slower_than_the_others_are_by_their_models_is_in_the_interval() -> None:
    body = manifest(stages=[SMALL, LARGE])
    pace = node_seconds(body, small=3.0)
    last, told = await lived(body, pace | {"large": 1.3 * pace["large"]})
    assert last.cost is not None
    early = when_spent(told, 0.1)
    assert micros(early.forecast) < 0.9 * last.cost.total_micros < micros(early.forecast_high)
    assert last.cost.total_micros < micros(early.forecast_high)
    assert micros(when_spent(told, 0.7).forecast) == pytest.approx(last.cost.total_micros, rel=0.05)


async def test_failures_are_expected_as_often_as_they_were_seen() -> None:
    body = manifest(stages=[SMALL, LARGE], nodes={"min": 3, "max": 3}, checkpoint={"everySteps": 5})
    pace = node_seconds(body, small=3.0)
    script: dict[int, Event] = {}
    for second in range(20, SECONDS, 40):
        script |= {second: lambda c: c.lose_node("node-1"), second + 3: lambda c: c.restore_node("node-1")}
    calm, _ = await lived(body, pace)
    harmed, told = await lived(body, pace, script)
    assert calm.cost is not None and harmed.cost is not None
    assert harmed.cost.total_micros > 1.1 * calm.cost.total_micros
    for share in (0.4, 0.7):
        cost = when_spent(told, share)
        assert micros(cost.forecast) == pytest.approx(harmed.cost.total_micros, rel=0.05)
        assert micros(cost.forecast_low) <= harmed.cost.total_micros <= micros(cost.forecast_high)


async def test_nothing_is_foreseen_before_steps_were_measured() -> None:
    body = manifest(stages=[SMALL])
    _, told = await lived(body, node_seconds(body, small=3.0))
    assert told[0].forecast is None and told[0].forecast_low is None and told[0].expected_stages == []


async def test_a_stage_of_which_nobody_knows_the_work_is_left_out_and_named() -> None:
    bucket = {"resolution": "32px", "frames": 8, "batchSize": 2, "aspectRatios": ["1:1"]}
    learning = {"optimizer": {"learningRate": [{"value": 3e-4}]}, "parallel": {"microBatchesPerStep": 6}}
    coder = {"steps": 20, "bucket": bucket, "precision": "fp32"} | learning
    body = manifest(
        autoencoder={"preset": "dc-ae-tiny"},
        dataset={"clips": "s3://videotrain/clips"},
        stages=[
            {"name": "autoencoder", "task": "autoencoder", "autoencoder": coder},
            {"name": "encode", "task": "encode", "encode": {}},
            SMALL,
        ],
    )
    _, told = await lived(body, node_seconds(body, small=3.0) | {"autoencoder": 3.0})
    found = {stage.name: stage for stage in next(cost for cost in told if cost.expected_stages).expected_stages}
    assert (found["encode"].source, found["encode"].total) == ("unknown", None)
    assert (found["autoencoder"].source, found["small"].source) == ("measured", "modelled")


@pytest.mark.parametrize("steps", [0.01, 1, 100])
def test_what_a_failure_may_cost_near_the_end_leaves_the_interval_finite(steps):
    """Steps that are left fall faster than their deviation does."""
    restarts = SimpleNamespace(model_dump=lambda: {"hang": 2})
    draft = SimpleNamespace(status=SimpleNamespace(restarts=restarts))
    held = SimpleNamespace(gpu_microseconds=240 * 86_400_000_000, node_microseconds=0)
    bill = SimpleNamespace(stages={"train": held}, micros={Bucket.LOST: 4_300_000_000}, total=14_400_000_000)
    rest = _Rest(micros=500.0 * steps, gpu_days=2e-5 * steps, failure=2e3 * steps)
    found = _summed(draft, bill, rest, [])
    assert bill.total <= found.low <= found.micros <= found.high < 2 * bill.total
