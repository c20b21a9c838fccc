"""The agent's exposition."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.promtool import check_metrics

from videotrain_api.metrics import CATALOGUE, emitted_by
from videotrain_api.records import (
    CheckpointRecord,
    GenerationProgress,
    HousekeepingRecord,
    StartedRecord,
    StepRecord,
    ValidationRecord,
    WorkerExit,
)
from videotrain_trainer.agent.metrics import AgentMetrics
from videotrain_trainer.worker.pod import Pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POD = Pod(name="w0", uid="u", address="127.0.0.2", run="run", namespace="team", root=Path("/nowhere"))


def filled(generations=1, rates=None, **measured):
    metrics = AgentMetrics(POD)
    for generation in range(1, generations + 1):
        common = {"generation": generation, "stage": "one"}
        metrics.record(StartedRecord(**common, at=NOW, world_size=4, resumed_step=5, total_steps=9, attention="cudnn"))
        metrics.record(
            StepRecord(
                **common,
                step=6,
                started_at=NOW,
                finished_at=NOW,
                data_stall_us=1_500_000,
                checkpoint_us=0,
                samples=8,
                tokens=80,
                model_flops=1e15,
                loss=0.5,
                bucket="256px/33f/16:9",
                **measured,
            )
        )
        metrics.record(
            ValidationRecord(
                **common,
                step=6,
                at=NOW,
                duration_us=1,
                samples=3,
                loss=0.4,
                bucket_losses={"256px/33f/16:9": 0.2, "256px/33f/1:1": 0.4, "256px/1f/1:1": 0.6},
                times=[0.5],
                time_losses=[0.4],
            )
        )
        metrics.record(
            CheckpointRecord(**common, step=6, captured_at=NOW, committed_at=NOW, uri="s3://b", bytes=1024, stall_us=0)
        )
        metrics.record(HousekeepingRecord(**common, at=NOW, task="retention", message="a listing is old"))
        metrics.exits([WorkerExit(**common, local_rank=0, at=NOW, code=137, outcome="failed", step=6)])
        metrics.progress(GenerationProgress(**common, state="failed", launched_at=NOW, **rates or {}))
    return metrics.text().decode()


def values(text):
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def test_losses_are_shown_by_size_class_over_all_of_its_shapes():
    found = values(filled())
    labels = [("namespace", "team"), ("pod", "w0"), ("run", "run"), ("stage", "one")]

    def of(name, bucket):
        return found[name, *sorted([*labels, ("bucket", bucket)])]

    assert of("videotrain_bucket_loss", "256px/33f") == 0.5
    assert of("videotrain_validation_bucket_loss", "256px/33f") == pytest.approx(0.3)
    assert of("videotrain_validation_bucket_loss", "256px/1f") == 0.6
    assert found["videotrain_validation_loss", *labels] == 0.4


def test_every_series_is_in_the_catalogue_with_its_labels():
    for family in text_string_to_metric_families(filled()):
        name = family.name if family.name in CATALOGUE else f"{family.name}_total"
        metric = CATALOGUE[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_every_series_that_the_catalogue_gives_to_the_agent_is_shown():
    names = ("samples_per_second", "tokens_per_second", "mfu", "hfu", "useful_mfu", "memory_bytes")
    measured = {"gradient_norm": 1.0, "learning_rate": 1e-4, "world_spread": 0.1, "straggler_ratio": 0.2}
    measured |= {"sample_requests": 12, "second_requests": 2, "repeated_requests": 1, "slowest_sample_us": 250_000}
    measured |= {"cache_hits": 3, "cache_misses": 4, "cache_bytes": 1_000_000, "stored_bytes": 9}
    text = filled(rates=dict.fromkeys(names, 8), **measured)
    shown = {sample.name.removesuffix("_bucket") for f in text_string_to_metric_families(text) for sample in f.samples}
    assert [metric.name for metric in emitted_by("agent") if metric.name not in shown] == []


def test_counters_go_on_over_generations_and_gauges_show_the_last():
    labels = [("namespace", "team"), ("pod", "w0"), ("run", "run"), ("stage", "one")]
    seen = values(filled(generations=3))
    assert seen["videotrain_samples_total", *labels] == 24
    assert seen["videotrain_data_stall_seconds_total", *labels] == 4.5
    assert seen["videotrain_checkpoint_commits_total", *labels] == 3
    assert seen["videotrain_worker_exits_total", ("code", "137"), *labels] == 3
    assert seen["videotrain_generation", *labels] == 3
    assert seen["videotrain_loss", *labels] == 0.5
    assert seen["videotrain_checkpoint_last_size_bytes", *labels] == 1024


def test_parts_of_a_step_are_counted_and_a_pod_counts_the_steps_in_which_one_of_its_ranks_was_slowest():
    labels = [("namespace", "team"), ("pod", "w0"), ("run", "run"), ("stage", "one")]
    metrics = AgentMetrics(POD)
    for slowest in (8, 15, 16, 7, None):
        metrics.record(
            StepRecord(
                generation=1,
                stage="one",
                step=6,
                started_at=NOW,
                finished_at=NOW,
                data_stall_us=0,
                checkpoint_us=0,
                samples=8,
                tokens=80,
                model_flops=1e15,
                forward_us=1_000_000,
                backward_us=2_000_000,
                slowest_rank=slowest,
            ),
            range(8, 16),
        )
    found = values(metrics.text().decode())
    assert found["videotrain_slowest_steps_total", *labels] == 2
    parts = ("forward", "backward", "communication", "optimizer")
    seconds = [found["videotrain_step_part_seconds_total", *sorted([*labels, ("part", part)])] for part in parts]
    assert seconds == [5, 10, 0, 0]
    assert not any("rank" in dict(labels) for (_, *labels) in found), "a series per rank would be thousands"


def test_promtool_accepts_the_page():
    check_metrics(filled(generations=2))


def test_exactly_one_worker_state_is_shown():
    states = {
        dict(labels)["state"]: value
        for (name, *labels), value in values(filled()).items()
        if name.endswith("worker_state")
    }
    assert states.pop("failed") == 1
    assert set(states.values()) == {0}


def test_what_was_not_measured_is_not_shown():
    assert "videotrain_gradient_norm{" not in filled()


def test_gauges_end_with_their_stage_and_counters_go_on():
    metrics = AgentMetrics(POD)
    for stage in ("one", "two"):
        common = {"generation": 1, "stage": stage}
        metrics.record(StartedRecord(**common, at=NOW, world_size=4, resumed_step=5, total_steps=9))
        metrics.record(
            CheckpointRecord(**common, step=6, captured_at=NOW, committed_at=NOW, uri="s3://b", bytes=1, stall_us=0)
        )
        metrics.progress(GenerationProgress(**common, state="running", launched_at=NOW))
    stages = {}
    for name, *labels in values(metrics.text().decode()):
        stages.setdefault(name, set()).add(dict(labels)["stage"])
    assert stages["videotrain_worker_state"] == stages["videotrain_checkpoint_last_step"] == {"two"}
    assert stages["videotrain_checkpoint_commits_total"] == {"one", "two"}
