"""Bytes and requests of a run at its object store, counted by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from videotrain_api.billing.estimates import GIBIBYTE, StorageEstimate
from videotrain_api.cost.flops import parameters, run_shape
from videotrain_api.cost.forecast import forecast
from videotrain_api.cost.storage import (
    CHECKPOINT_FILES,
    PART_BYTES,
    RECORD_BYTES,
    checkpoints_of,
    estimates_of,
    planned_storage,
)
from videotrain_api.records import StepRecord
from videotrain_api.resource.prices import StoragePrices
from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_api.schema import Json
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[4] / "manifests/examples"
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
RANKS = 224
"""GPUs of the example's first stage."""


def body(name: str = "open-sora-2.yaml", **spec: Any) -> Json:
    found: Json = yaml.safe_load((EXAMPLES / name).read_text())
    found["spec"] |= spec
    return found


def by_place(estimates: list[StorageEstimate]) -> dict[tuple[str, str], StorageEstimate]:
    return {(one.stage, one.kept): one for one in estimates}


@pytest.mark.parametrize(
    ("policy", "steps", "seconds", "made", "kept"),
    [
        ({"every_steps": 200, "keep_last": 3}, 1_000, None, 5, 3),
        ({"every_steps": 200, "keep_last": 3}, 399, None, 1, 1),
        ({"every_steps": 200, "keep_last": 2, "keep_every_steps": 1_000}, 2_500, None, 12, 4),
        ({"every_steps": 200, "every_seconds": 600}, 1_000, 6_000.0, 10, 3),
        ({"every_steps": 200, "every_seconds": 1}, 5, 6_000.0, 5, 3),  # not more often than there are steps
        ({"every_steps": 200}, 0, 0.0, 0, 0),
    ],
)
def test_what_a_policy_makes_and_keeps(policy: Any, steps: int, seconds: float | None, made: int, kept: int) -> None:
    assert checkpoints_of(CheckpointPolicy(**policy), steps, seconds) == (made, kept)


def test_a_plan_counts_bytes_and_requests_of_a_stage_that_trains() -> None:
    run = parse_run(body(checkpoint={"everySteps": 500, "keepLast": 3}))
    planned = forecast(run)
    found = by_place(planned_storage(run, planned))
    stage, expected = run.spec.stages[0], planned.stages[0]
    assert stage.train is not None and expected.work is not None and expected.gpus == RANKS
    state = parameters(run_shape(run)) * (12 + (4 if stage.train.ema_decay is not None else 0))
    checkpoints = found[stage.name, "checkpoints"]
    assert checkpoints.bytes == 3 * state
    each = -(-state // RANKS)
    a_file = -(-each // PART_BYTES) + 2  # begun, in parts, ended
    made = expected.work.steps // 500
    assert checkpoints.writes == made * (RANKS * (a_file + 1) + CHECKPOINT_FILES)
    assert found[stage.name, "weights"].bytes == 2 * parameters(run_shape(run))
    assert found[stage.name, "records"].bytes == expected.work.steps * RECORD_BYTES
    # Of a group that shares a sequence each rank reads the sample.
    rows = stage.train.buckets
    shared = [expected.work.rows[n].micro_batches * rows[n].batch_size for n in range(len(rows))]
    degrees = [row.context_parallel for row in expected.work.rows]
    reads = sum(a * b for a, b in zip(shared, degrees, strict=True)) / len(rows) * expected.work.steps
    assert found[stage.name, "samples"].reads == pytest.approx(reads)
    # The first stage's checkpoints lie there until the last stage ends, the last one's for its own time alone.
    last = found[run.spec.stages[-1].name, "checkpoints"]
    assert checkpoints.byte_seconds / checkpoints.bytes > 2 * last.byte_seconds / last.bytes > 0


def test_samples_are_counted_where_hours_of_video_are_given() -> None:
    run = parse_run(body("open-sora-2-from-videos.yaml"))
    without = by_place(planned_storage(run, forecast(run)))
    assert ("encode", "samples") not in without
    one, ten = (
        by_place(planned_storage(run, forecast(run, hours_of_video=h)))["encode", "samples"] for h in (100, 1000)
    )
    assert one.bytes * 10 == pytest.approx(ten.bytes) and ten.reads == 10 * one.reads > 0
    assert ten.bytes / ten.writes == pytest.approx(PART_BYTES, rel=0.3), "shards are written in parts"


def test_money_is_that_of_the_price_list() -> None:
    month = GIBIBYTE * 30 * 86_400
    one = StorageEstimate(
        stage="a", kept="samples", bytes=1, byte_seconds=1_000 * month, writes=2_000, reads=10_000_000
    )
    prices = StoragePrices(
        price_per_gibibyte_month="0.023", price_per_thousand_writes="0.005", price_per_thousand_reads="0.0004"
    )
    assert [one.micros(kind, prices) for kind in ("storage", "writes", "reads")] == [23_000_000, 10_000, 4_000_000]
    assert one.total_micros(prices) == 27_010_000 and one.total_micros(StoragePrices()) == 0


def status(steps: int, **more: Any) -> Json:
    stage = {
        "name": "256px-t2v",
        "task": "train",
        "state": "Running",
        "configHash": "c",
        "step": steps,
        "startedAt": BEGIN.isoformat(),
    }
    return {"stages": [stage | more], "observedAt": (BEGIN + timedelta(days=30)).isoformat()}


def test_of_a_run_that_goes_on_only_what_was_made_is_counted() -> None:
    run = body(checkpoint={"everySteps": 500, "keepLast": 3})
    found = by_place(estimates_of(run | {"status": status(1_200)}))
    assert found.keys() == {("256px-t2v", kept) for kept in ("checkpoints", "samples", "records")}
    checkpoints = found["256px-t2v", "checkpoints"]
    assert checkpoints.amount("storage") == pytest.approx(checkpoints.bytes / GIBIBYTE), "a month of 30 days"
    over = by_place(estimates_of(run | {"status": status(1_200, state="Succeeded")}))
    assert over["256px-t2v", "weights"].bytes > 0
    assert estimates_of(run) == [], "before it began"


def test_a_run_that_nobody_here_can_read_has_no_estimate() -> None:
    assert estimates_of(body(surprise=True) | {"status": status(1_200)}) == []


def test_a_record_is_about_as_long_as_is_assumed() -> None:
    values = dict.fromkeys(StepRecord.model_fields, 123_456) | {
        "kind": "step",
        "stage": "256px-t2v",
        "bucket": "256px 5-33f",
        "config_hash": "c" * 64,
        "started_at": BEGIN + timedelta(microseconds=1),
        "finished_at": BEGIN + timedelta(seconds=5, microseconds=1),
    }
    size = len(StepRecord.model_validate(values, by_name=True).model_dump_json(by_alias=True, exclude_none=True))
    assert RECORD_BYTES / 2 < size < 2 * RECORD_BYTES
