"""Edits of stages: taken while a run rests, and refused where they would change the order of samples."""

from __future__ import annotations

from typing import Any

import pytest
from support.planner_builders import manifest, train_stage
from support.planner_lives import condition, pass_seconds, told

from videotrain_api.resource.status import RunStatus
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.world import Pace

STEPS = 16


def cluster() -> SimulatedCluster:
    stages = [train_stage("first", STEPS), train_stage("second", 5)]
    return SimulatedCluster(manifest(stages=stages), nodes=3, pace=Pace(every_steps=4))


def stages(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    found = [train_stage("first", STEPS), train_stage("second", 5)]
    for stage, changes in zip(found, (first, second), strict=True):
        stage["train"] |= changes or {}
    return found


async def resting(run: SimulatedCluster, seconds: int = 10) -> RunStatus:
    await pass_seconds(run, seconds)
    run.edit(suspend=True)
    status = await pass_seconds(run, 15)
    assert status.phase == "Suspended"
    return status


async def test_more_steps_and_another_rate_of_a_stage_that_has_begun_go_on_where_it_was() -> None:
    run = cluster()
    before = await resting(run)
    assert 0 < before.stages[0].saved_step < STEPS
    optimizer = {"learningRate": [{"value": 1e-5}]}
    run.edit(suspend=False, stages=stages({"steps": 24, "optimizer": optimizer}, {"steps": 7}))
    status = await pass_seconds(run, 120)
    assert status.phase == "Succeeded"
    assert [(stage.step, stage.total_steps) for stage in status.stages] == [(24, 24), (7, 7)]
    assert all(new.config_hash != old.config_hash for new, old in zip(status.stages, before.stages, strict=True))
    assert status.config_map != before.config_map
    resumed = next(g for g in status.generations if g.number == before.generation + 1)
    assert resumed.reason == "Resumed"
    assert resumed.progress is not None and resumed.progress.resumed_step == before.stages[0].saved_step
    (message,) = told(run, "StagesEdited")
    assert before.stages[0].config_hash in message and status.stages[0].config_hash in message
    cost = status.cost
    assert cost is not None and sum(cost.micros_by_bucket.values()) == cost.total_micros


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"textDropout": 0.5}, "spec.stages[0].train.textDropout: 0.5: would change the order of samples"),
        ({"parallel": {"microBatchesPerStep": 16}}, "spec.stages[0].train.parallel.microBatchesPerStep"),
        ({"steps": 4}, "spec.stages[0].train.steps: 4: "),
    ],
)
async def test_what_would_change_the_order_holds_the_run_until_it_is_undone(changes: dict[str, Any], why: str) -> None:
    run = cluster()
    before = await resting(run)
    run.edit(suspend=False, stages=stages(changes))
    status = await pass_seconds(run, 30)
    accepted = condition(status, "Accepted")
    assert accepted.status == "False"
    assert why in accepted.message
    assert (status.config_map, status.generation) == (before.config_map, before.generation)
    assert [stage.config_hash for stage in status.stages] == [stage.config_hash for stage in before.stages]
    run.edit(stages=stages())
    status = await pass_seconds(run, 120)
    assert status.phase == "Succeeded"
    assert [stage.config_hash for stage in status.stages] == [stage.config_hash for stage in before.stages]


async def test_a_complete_stage_stays_what_it_was_and_a_later_one_is_free() -> None:
    run = cluster()
    await pass_seconds(run, 5)
    while RunStatus.from_wire(run.run["status"]).stages[0].state != "Succeeded":
        await pass_seconds(run, 1)
    before = await resting(run, 1)
    run.edit(suspend=False, stages=stages({"steps": 30}))
    status = await pass_seconds(run, 20)
    assert "stage 'first' is complete" in condition(status, "Accepted").message
    run.edit(stages=stages(None, {"textDropout": 0.5} if before.stages[1].state == "Pending" else {"steps": 9}))
    status = await pass_seconds(run, 120)
    assert status.phase == "Succeeded"


async def test_a_running_stage_is_edited_at_its_next_checkpoint_without_losing_its_pods() -> None:
    run = cluster()
    before = await pass_seconds(run, 10)
    pods = {body["metadata"]["uid"] for body in run.pods()}
    assert before.phase == "Running"
    optimizer = {"learningRate": [{"value": 1e-5}]}
    run.edit(stages=stages({"steps": 24, "optimizer": optimizer}))
    status = await pass_seconds(run, 1)
    assert (status.config_map, status.generation) == (before.config_map, before.generation), "no checkpoint since"
    seen = {status.phase}
    while status.generation == before.generation:
        status = await pass_seconds(run, 1)
        seen.add(status.phase)
    assert {body["metadata"]["uid"] for body in run.pods()} == pods
    old, new = status.generations[-2:]
    assert (old.end_cause, new.reason, new.members) == ("drained", "Edited", old.members)
    status = await pass_seconds(run, 120)
    assert (status.phase, status.stages[0].step, status.stages[0].total_steps) == ("Succeeded", 24, 24)
    assert status.stages[0].config_hash != before.stages[0].config_hash
    assert status.stages[1].config_hash == before.stages[1].config_hash
    edited = next(g for g in status.generations if g.number == new.number).progress
    reached = next(g for g in status.generations if g.number == old.number).progress
    assert edited is not None and reached is not None and edited.resumed_step == reached.step, "no step is done twice"
    assert seen >= {"Running", "Resizing"} and "Restarting" not in seen
    assert told(run, "Resized") and not told(run, "Recovered")
    assert status.restarts.model_dump() == before.restarts.model_dump()


async def test_a_later_stage_is_edited_while_an_earlier_one_runs_on() -> None:
    run = cluster()
    before = await pass_seconds(run, 10)
    run.edit(stages=stages(None, {"steps": 9}))
    status = await pass_seconds(run, 2)
    assert status.generation == before.generation and status.phase == "Running"
    assert status.config_map != before.config_map
    status = await pass_seconds(run, 120)
    assert [stage.step for stage in status.stages] == [STEPS, 9]
    assert [g.reason for g in status.generations] == ["Started", "StageStarted"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"textDropout": 0.5}, "spec.stages[0].train.textDropout: 0.5: would change the order of samples"),
        ({"steps": 2}, "spec.stages[0].train.steps: 2: "),
    ],
)
async def test_a_running_stage_goes_on_as_it_was_after_an_edit_that_cannot_be_taken(
    changes: dict[str, Any], why: str
) -> None:
    run = cluster()
    before = await pass_seconds(run, 10)
    run.edit(stages=stages(changes))
    status = await pass_seconds(run, 3)
    accepted = condition(status, "Accepted")
    assert (accepted.status, accepted.reason) == ("True", "EditRefused") and why in accepted.message
    assert len(told(run, "EditRefused")) == 1
    status = await pass_seconds(run, 120)
    assert (status.phase, status.config_map) == ("Succeeded", before.config_map)


async def test_a_pod_that_replaces_another_after_an_edit_works_beside_older_ones() -> None:
    """It has the new configuration mounted, they have the old one: the roster brings the new one to all."""
    run = cluster()
    before = await pass_seconds(run, 10)
    run.edit(stages=stages({"steps": 24}))
    status = await pass_seconds(run, 6)
    assert status.config_map != before.config_map
    run.force_delete("demo-w1")
    status = await pass_seconds(run, 120)
    assert (status.phase, status.stages[0].step) == ("Succeeded", 24)


@pytest.mark.parametrize("refused_first", [True, False])
async def test_a_refused_edit_is_not_frozen_when_somebody_empties_the_status(refused_first: bool) -> None:
    """What was frozen is on record in the ledger, too, and so is which stage has begun."""
    run = cluster()
    before = await resting(run)
    edit = stages({"textDropout": 0.5})
    if refused_first:
        run.edit(suspend=False, stages=edit)
        assert condition(await pass_seconds(run, 5), "Accepted").status == "False"
        run.run["status"] = {}
    else:
        run.run["status"] = {}
        run.edit(suspend=False, stages=edit)
    status = await pass_seconds(run, 120)
    assert status.config_map == before.config_map
    assert [stage.config_hash for stage in status.stages] == [stage.config_hash for stage in before.stages]
    assert status.phase in ("Succeeded", "Invalid", "Suspended"), "it goes on as it was, or is held"


async def test_a_stage_that_has_begun_is_known_to_have_begun_after_its_status_was_emptied() -> None:
    run = cluster()
    before = await resting(run)
    run.run["status"] = {}
    status = await pass_seconds(run, 5)
    assert status.phase == "Suspended"
    assert status.stages[0].state == before.stages[0].state == "Running"
    run.edit(suspend=False, stages=stages({"textDropout": 0.5}))
    status = await pass_seconds(run, 20)
    assert "would change the order of samples" in condition(status, "Accepted").message
    assert status.config_map == before.config_map
