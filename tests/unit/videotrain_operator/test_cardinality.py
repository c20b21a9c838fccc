"""How many series a run has: a number that neither its length nor its faults raise."""

from __future__ import annotations

from datetime import timedelta

from support.planner_builders import at, manifest

from videotrain_api import metrics as catalogue
from videotrain_api.resource.status import (
    Correction,
    Corrections,
    CostStatus,
    ExpectedStage,
    GenerationStatus,
    RunStatus,
    StageCost,
    StageStatus,
    SuspectNode,
    ThroughputStatus,
)
from videotrain_api.vocabulary import WASTE_CAUSES, Bucket
from videotrain_operator.planner.members import SUSPECTS_KEPT
from videotrain_operator.telemetry import OperatorMetrics

STAGES = 6
"""Of the longest recipes: curation, autoencoder, encoding and three of training."""
MOST = 200
"""Series of one run that has had everything; Prometheus holds millions."""


def busy_run(generations: int) -> RunStatus:
    """A run of many stages in which everything has happened, with so many generations behind it."""
    names = [f"stage-{number}" for number in range(STAGES)]
    amounts = {bucket.value: 1_000_000 for bucket in Bucket}
    waste = dict.fromkeys(WASTE_CAUSES, 1_000_000)
    moved = Correction(out=amounts, into=amounts)
    last = [
        GenerationStatus(
            number=number, stage=names[-1], reason="Started", members=["demo-w0"], world_size=8, gpus=8,
            created_at=at(number), ended_at=at(number + 1), end_cause="infrastructure",
        )
        for number in range(max(1, generations - 15), generations + 1)
    ]  # fmt: skip
    return RunStatus(
        phase="Running",
        stage=names[-1],
        generation=generations,
        stages=[
            StageStatus(name=name, task="train", state="Running", config_hash="0" * 16, total_steps=9, started_at=at(0))
            for name in names
        ],
        generations=last,
        suspect_nodes=[
            SuspectNode(name=f"n{number}", reason="x", since=at(0) + timedelta(seconds=number))
            for number in range(SUSPECTS_KEPT)
        ],
        throughput=ThroughputStatus(samples_per_second=2.0, tokens_per_second=9.0, mfu_percent=40.0),
        cost=CostStatus(
            currency="USD",
            gpu_microseconds_by_bucket=amounts,
            micros_by_bucket=amounts,
            waste_micros_by_cause=waste,
            stages=[
                StageCost(name=name, total_micros=1, total="0", held_gpu_microseconds=1, held_node_microseconds=1)
                for name in names
            ],
            expected_stages=[ExpectedStage(name=name, total="9", source="measured") for name in names],
            forecast="9",
            forecast_low="8",
            forecast_high="10",
            budget_percent=10.0,
            goodput_percent=90.0,
            corrections=Corrections(gpu_microseconds_by_bucket=moved, micros_by_bucket=moved),
        ),
    )


def exposed(metrics: OperatorMetrics) -> list[dict[str, str]]:
    """Labels of every series of runs."""
    return [sample.labels for family in metrics.collect() for sample in family.samples if "run" in sample.labels]


def test_a_thousand_busy_runs_have_a_thousand_times_a_bounded_number_of_series() -> None:
    metrics = OperatorMetrics()
    status = busy_run(40).to_wire()
    for number in range(1000):
        body = manifest(budget={"maxCost": "20"})
        body["metadata"] |= {"name": f"run-{number}", "uid": f"uid-{number}"}
        metrics.note_pass(body, status, 0.004, [])
    by_run: dict[str, int] = {}
    for labels in exposed(metrics):
        by_run[labels["run"]] = by_run.get(labels["run"], 0) + 1
    assert len(by_run) == 1000
    assert len(set(by_run.values())) == 1
    assert by_run["run-0"] <= MOST
    metrics.forget("default", "run-0")
    assert len(exposed(metrics)) == 999 * by_run["run-1"]


def test_a_long_life_has_no_more_series_than_a_short_one() -> None:
    counts = []
    for generations in (16, 5000):
        metrics = OperatorMetrics()
        metrics.note_pass(manifest(), busy_run(generations).to_wire(), 0.004, [])
        counts.append(len(exposed(metrics)))
    assert counts[0] == counts[1]


def test_no_label_of_a_run_takes_values_without_bound() -> None:
    """Each label of the catalogue is of a kind whose values are few: names that people give, or words of ours."""
    few = {"namespace", "run", "stage", "pod", "bucket", "cause", "currency", "phase", "task", "kind", "state", "code"}
    few |= {"commitment"}  # of the price list
    few |= {
        "direction",
        "bound",
        "part",
        "outcome",
        "kernel",
        "reason",
        "node",
        "error",
        "verb",
        "budget",
        "action",
        "measure",
    }
    few |= {"uid", "model", "autoencoder", "team"}  # one value each for a run
    assert {label for metric in catalogue.CATALOGUE.values() for label in metric.labels} <= few
