"""The operator's exposition, computed from the status."""

from __future__ import annotations

import math
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.planner_builders import agent, at, failed, manifest, pod, progress, run_of, seen

from videotrain.wording import CAUSE_MEANINGS
from videotrain_api.metrics import (
    AGENT_ANSWERS_REFUSED,
    BILL_COPY_FAILURES,
    BILLS_WAITING,
    CATALOGUE,
    LEADER,
    PASSES_WAITING,
    RESERVED_GPUS,
    RESERVED_IDLE_COST,
    RUN_DEFAULTS_REFUSED,
    RUN_DEFAULTS_UNREADABLE,
    TIME_UNTRUSTED,
    TRAINING_BUDGET_ACTION,
    TRAINING_BUDGET_AMOUNT,
    TRAINING_BUDGET_EXPECTED,
    TRAINING_BUDGET_JUDGED,
    TRAINING_BUDGET_SPENT,
    WATCH_RESTARTS,
    WATCH_SILENT_SECONDS,
    WEBHOOK_JUDGES_ENDED,
    WEBHOOK_REFUSED,
    WEBHOOK_REVIEWS,
    emitted_by,
)
from videotrain_api.records import CurationCounts, Measures, SavedPoint
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
from videotrain_api.vocabulary import WASTE_CAUSES, ExitCode
from videotrain_operator.planner.plan import plan
from videotrain_operator.telemetry import OperatorMetrics

MEASURES = Measures(clips=3, psnr=30.5, ssim=0.9)
COUNTS = CurationCounts(clips=4, dropped={"still": 2, "too-short": 1})


def values(status: RunStatus) -> dict[tuple[str, ...], float]:
    """Every sample of a page by name and label values, in the order of the catalogue's labels."""
    metrics = OperatorMetrics()
    metrics.note_pass(manifest(budget={"maxCost": "20"}), status.to_wire(), 0.004, ["Started"])
    metrics.note_conflict()
    metrics.note_error(OSError())
    metrics.note_request("patch", "Pod", 200)
    metrics.note_node_trust("")
    metrics.add_source(
        lambda: [
            (LEADER, (), 1.0),
            (PASSES_WAITING, (), 0),
            (RUN_DEFAULTS_UNREADABLE, (), 0.0),
            (RUN_DEFAULTS_REFUSED, (), 0),
            (TIME_UNTRUSTED, (), 0.0),
            (WATCH_RESTARTS, ("Pod",), 2),
            (WATCH_SILENT_SECONDS, ("Pod",), 4.0),
            (WEBHOOK_REVIEWS, ("denied",), 3),
            (WEBHOOK_REFUSED, ("busy",), 1),
            (WEBHOOK_JUDGES_ENDED, (), 1),
            (AGENT_ANSWERS_REFUSED, ("unsigned",), 2),
            (TRAINING_BUDGET_AMOUNT, ("team", "USD"), 100.0),
            (TRAINING_BUDGET_SPENT, ("team", "USD"), 40.0),
            (TRAINING_BUDGET_EXPECTED, ("team", "USD"), 90.0),
            (TRAINING_BUDGET_ACTION, ("team", "Shrink"), 0.0),
            (TRAINING_BUDGET_JUDGED, ("team",), 1.0),
            (BILLS_WAITING, (), 2.0),
            (BILL_COPY_FAILURES, (), 1),
            (RESERVED_GPUS, ("three-years", "held"), 8.0),
            (RESERVED_IDLE_COST, ("three-years", "USD"), 12.0),
        ]
    )
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            known = CATALOGUE.get(sample.name)
            found[sample.name, *(sample.labels[label] for label in (known.labels if known else ()))] = sample.value
    return found


def generation(number: int, facts: object = None, **more: object) -> GenerationStatus:
    fields = {"stage": "train", "reason": "Started", "members": ["demo-w0"], "world_size": 2, "gpus": 2}
    return GenerationStatus(**fields | {"number": number, "created_at": at(1), "progress": facts} | more)


def full_status() -> RunStatus:
    """A run that curated, lost a worker, went on and has a budget."""
    kept = StageStatus(name="curate", task="curate", state="Succeeded", config_hash="0" * 16, curation=COUNTS)
    measured = StageStatus(
        name="measure", task="evaluate", state="Succeeded", config_hash="0" * 16, evaluation=MEASURES
    )
    trained = StageStatus(
        name="train",
        task="train",
        state="Running",
        config_hash="0" * 16,
        total_steps=100,
        started_at=at(1),
        frames_per_step=264.0,
    )
    broken = generation(2, failed(2, 5, int(ExitCode.INTERNAL), at(20)), end_cause="application")
    return RunStatus(
        phase="Running",
        stage="train",
        stages=[kept, trained, measured],
        generations=[broken, generation(3, progress(3, 30))],
        suspect_nodes=[SuspectNode(name="node-1", reason="GPU lost", since=at(20))],
        throughput=ThroughputStatus(samples_per_second=2.0, tokens_per_second=9.0, mfu_percent=40.0),
        cost=CostStatus(
            currency="USD",
            gpu_microseconds_by_bucket={"productive": 10},
            micros_by_bucket={"productive": 10, "lost": 4},
            stages=[
                StageCost(name="train", total_micros=14, total="0", held_gpu_microseconds=10, held_node_microseconds=5)
            ],
            waste_micros_by_cause={"application": 4},
            forecast="9",
            forecast_low="8",
            forecast_high="10",
            expected_stages=[
                ExpectedStage(name="train", total="9", source="measured"),
                ExpectedStage(name="sample", source="unknown"),
            ],
            budget_percent=10.0,
            goodput_percent=90.0,
        ),
    )


def test_every_series_that_the_catalogue_gives_to_the_operator_is_shown():
    shown = {name.removesuffix("_bucket") for name, *_ in values(full_status())}
    assert [metric.name for metric in emitted_by("operator") if metric.name not in shown] == []


def test_drops_are_counted_by_reason_beside_the_clips_that_were_kept():
    shown = values(full_status())
    head = ("videotrain_curation_dropped_total", "default", "demo", "curate")
    assert {key[4]: value for key, value in shown.items() if key[:4] == head} == COUNTS.dropped
    assert shown["videotrain_curation_clips", "default", "demo", "curate"] == 4
    assert shown["videotrain_evaluation", "default", "demo", "measure", "psnr"] == 30.5


def test_no_counter_of_waste_begins_with_an_amount_that_a_rate_cannot_see():
    """Why time was lost may be known a moment later: it leaves `unknown`, and both must have been there at nothing."""
    young = full_status().model_copy(update={"cost": CostStatus(currency="USD")})
    shown = values(young)
    head = ("videotrain_waste_micros_total", "default", "demo")
    assert {key[3]: value for key, value in shown.items() if key[:3] == head} == dict.fromkeys(WASTE_CAUSES, 0)
    assert list(CAUSE_MEANINGS) == list(WASTE_CAUSES), "each is explained"


def pass_over(status: RunStatus, *facts: object) -> RunStatus:
    """One pass of the planner in which the member of the newest generation answers."""
    agents = {"demo-w0": agent(0, facts[0], at(30), previous=facts[1] if facts[1:] else None)}
    observed = seen(pod(0), agents=agents)
    body = manifest(nodes={"min": 1, "max": 1}) | {"status": status.to_wire()}
    return plan(run_of(body), observed, at(30)).status


def running(*generations: GenerationStatus) -> RunStatus:
    stage = StageStatus(name="train", task="train", state="Running", config_hash="0" * 16, total_steps=100)
    return RunStatus(
        config_map="demo-config-frozen",
        generation=generations[-1].number,
        stages=[stage],
        observed_generation=1,
        generations=list(generations),
    )


def test_a_set_that_a_resumed_stage_puts_together_again_is_counted_once():
    told = progress(1, 5, curation=COUNTS)
    status = pass_over(running(generation(1, end_cause="drained"), generation(2)), progress(2, 6), told)
    assert status.stages[0].curation == COUNTS
    again = pass_over(status, progress(2, 7, curation=COUNTS), told)
    assert [g.progress.curation for g in again.generations] == [COUNTS, COUNTS]
    assert values(again)["videotrain_curation_dropped_total", "default", "demo", "train", "still"] == 2


def test_counts_stay_when_their_generation_is_folded_away():
    status = pass_over(running(generation(1)), progress(1, 5, curation=COUNTS))
    folded = status.model_copy(update={"generation": 2, "generations": [generation(2)]})
    assert pass_over(folded, progress(2, 6)).stages[0].curation == COUNTS


def costing(productive: int, lost: int = 0, corrections: Corrections | None = None) -> dict[str, Any]:
    amounts = {"productive": productive, "lost": lost}
    cost = CostStatus(
        currency="USD", gpu_microseconds_by_bucket=amounts, micros_by_bucket=amounts, corrections=corrections
    )
    return RunStatus(cost=cost).to_wire()


def counted(metrics: OperatorMetrics, name: str = "videotrain_cost_micros_total") -> dict[str, float]:
    """By bucket, and by direction where it has one."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = (s for family in families for s in family.samples if s.name == name)
    return {"/".join(filter(None, (s.labels["bucket"], s.labels.get("direction")))): s.value for s in samples}


MOVED = Corrections(
    gpu_microseconds_by_bucket=Correction(out={"productive": 1_000_000}, into={"lost": 500_000}),
    micros_by_bucket=Correction(out={"productive": 1_000_000}, into={"lost": 500_000}),
)


def test_what_a_bill_took_back_is_counted_beside_counters_that_do_not_fall():
    metrics, run = OperatorMetrics(), manifest()
    metrics.note_pass(run, costing(5_000_000), 0.004, [])
    assert counted(metrics)["productive"] == 5_000_000
    metrics.note_pass(run, costing(4_000_000, 500_000, MOVED), 0.004, [])
    assert counted(metrics) == {"productive": 5_000_000, "lost": 0}
    corrected = counted(metrics, "videotrain_cost_corrected_micros_total")
    assert corrected == {"productive/out": 1_000_000, "productive/in": 0, "lost/out": 0, "lost/in": 500_000}
    assert counted(metrics, "videotrain_gpu_seconds_total") == {"productive": 5, "lost": 0}
    assert counted(metrics, "videotrain_gpu_seconds_corrected_total")["productive/out"] == 1


def test_another_process_goes_on_with_the_counters():
    metrics = OperatorMetrics()
    metrics.note_pass(manifest(), costing(4_000_000, 500_000, MOVED), 0.004, [])
    assert counted(metrics) == {"productive": 5_000_000, "lost": 0}


def test_counters_stay_when_a_status_lost_its_corrections():
    metrics, run = OperatorMetrics(), manifest()
    metrics.note_pass(run, costing(4_000_000, 500_000, MOVED), 0.004, [])
    counted(metrics)
    metrics.forget_runs()
    metrics.note_pass(run, costing(4_000_000, 500_000), 0.004, [])
    assert counted(metrics) == {"productive": 5_000_000, "lost": 500_000}
    corrected = counted(metrics, "videotrain_cost_corrected_micros_total")
    assert corrected == {"productive/out": 1_000_000, "productive/in": 0, "lost/out": 500_000, "lost/in": 500_000}


def test_another_run_of_the_name_begins_at_its_own_bill():
    metrics, run = OperatorMetrics(), manifest()
    metrics.note_pass(run, costing(5_000_000), 0.004, [])
    counted(metrics)
    other = run | {"metadata": run["metadata"] | {"uid": "another"}}
    metrics.note_pass(other, costing(1_000_000), 0.004, [])
    assert counted(metrics)["productive"] == 1_000_000


def test_the_time_of_the_newest_checkpoint_is_shown_of_a_stage_that_trains():
    name = "videotrain_run_saved_timestamp_seconds"
    point = SavedPoint(step=20, captured_at=at(40), committed_at=at(45), uri="s3://x", data_stall_us=0, checkpoint_us=0)
    status = running(generation(1, progress(1, 30)))
    begun = status.stages[0].model_copy(update={"started_at": at(5)})
    status = status.model_copy(update={"stage": "train", "stages": [begun]})
    assert values(status)[name, "default", "demo", "train"] == at(5).timestamp()
    saved = status.model_copy(update={"generations": [generation(1, progress(1, 30, saved=[point]))]})
    assert values(saved)[name, "default", "demo", "train"] == at(40).timestamp()
    encoding = begun.model_copy(update={"task": "encode"})
    assert (name, "default", "demo", "train") not in values(saved.model_copy(update={"stages": [encoding]}))


def test_an_amount_that_is_no_number_ends_no_page():
    status = full_status()
    assert status.cost is not None
    wrong = status.model_copy(update={"cost": status.cost.model_copy(update={"rate_per_hour": "abc", "forecast": ""})})
    shown = values(wrong)
    assert math.isnan(shown["videotrain_cost_rate_per_hour", "default", "demo", "USD"])
    assert math.isnan(shown["videotrain_forecast_cost", "default", "demo", "USD"])
    assert shown["videotrain_evaluation", "default", "demo", "measure", "psnr"] == 30.5
