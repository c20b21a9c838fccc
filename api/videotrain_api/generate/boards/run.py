"""One run: where it stands, what it learns, how fast it is, what it waits for and what it costs."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate.boards.queries import (
    OF_RUN,
    OF_STAGE,
    ONE_RUN,
    RESTARTS,
    SHOWN,
    STEP,
    WORLDS,
    of_leader,
    or_none,
    quantile,
    spent,
)
from videotrain_api.generate.panels import Board, Panel

_FAULTS: Final = f"round(increase({m.RESTARTS.name}{OF_RUN}{SHOWN}))"
"""Whole ones: `increase()` goes on to the edges of the time shown, and makes 1.01 of one fault."""


def _phase(phase: str) -> str:
    return f'{m.RUN_PHASE.name}{{{ONE_RUN}, phase="{phase}"}}{SHOWN}'


def _of_phase(phase: str) -> str:
    """Share of the time shown in which the run was in a phase."""
    return f"max(avg_over_time({_phase(phase)}))"


def _times(phase: str) -> str:
    """How often it was."""
    return f"ceil(max(changes({_phase(phase)})) / 2)"


RUN: Final = Board(
    "videotrain-run",
    "videotrain / run",
    ("cluster", "namespace", "run", "stage"),
    (
        (
            "Where it stands",
            (
                Panel(
                    "Model and autoencoder",
                    (
                        (
                            f"max by (model, autoencoder, uid) ({m.RUN_INFO.name}{OF_RUN})",
                            "{{model}} on {{autoencoder}}",
                        ),
                    ),
                    kind="name",
                    span=6,
                ),
                Panel(
                    "Phase",
                    ((f"max by (phase) ({m.RUN_PHASE.name}{OF_RUN}) == 1", "{{phase}}"),),
                    kind="name",
                    span=3,
                ),
                Panel(
                    "Stage",
                    ((f"max by (stage, task) ({m.RUN_STAGE.name}{OF_RUN}) == 1", "{{stage}} ({{task}})"),),
                    kind="name",
                    span=3,
                ),
                Panel(
                    "Done of each stage",
                    (
                        (
                            f"max by (stage) ({m.RUN_STEP.name}{OF_RUN})"
                            f" / max by (stage) ({m.RUN_STEPS_PLANNED.name}{OF_RUN})",
                            "{{stage}}",
                        ),
                    ),
                    "percentunit",
                    "number",
                    span=6,
                ),
                Panel(
                    "Spent, and expected at the end",
                    (
                        (spent(m.COST_MICROS, m.COST_CORRECTED_MICROS, "currency"), "spent {{currency}}"),
                        (f"max by (currency) ({m.RUN_BUDGET.name}{OF_RUN})", "budget {{currency}}"),
                        (f"max by (currency) ({m.FORECAST_COST.name}{OF_RUN})", "expected {{currency}}"),
                        (
                            f"max by (bound, currency) ({m.FORECAST_COST_BOUND.name}{OF_RUN})",
                            "80 %, {{bound}} {{currency}}",
                        ),
                    ),
                    "money",
                    "number",
                    span=6,
                ),
            ),
        ),
        (
            "Learning",
            (
                Panel(
                    "Loss",
                    (
                        (of_leader(m.LOSS), "training, {{stage}}"),
                        (of_leader(m.VALIDATION_LOSS), "held out, {{stage}}"),
                    ),
                ),
                Panel(
                    "Loss by size class", ((f"max by (bucket) ({m.BUCKET_LOSS.name}{OF_RUN})", "{{bucket}}"),), span=8
                ),
                Panel(
                    "Held-out loss by size class",
                    ((f"max by (bucket) ({m.VALIDATION_BUCKET_LOSS.name}{OF_RUN})", "{{bucket}}"),),
                ),
                Panel("Gradient norm before clipping", ((of_leader(m.GRADIENT_NORM), "{{stage}}"),)),
                Panel("Learning rate", ((of_leader(m.LEARNING_RATE), "{{stage}}"),), "sci"),
                Panel(
                    "Evaluation",
                    ((f"max by (stage, measure) ({m.EVALUATION.name}{OF_RUN})", "{{stage}}: {{measure}}"),),
                    kind="number",
                ),
                Panel(
                    "Step",
                    ((of_leader(m.STEP), "{{stage}}"), (of_leader(m.STEPS_PLANNED), "planned, {{stage}}")),
                ),
            ),
        ),
        (
            "Speed",
            (
                Panel("Samples per second", ((of_leader(m.SAMPLES_PER_SECOND), "{{stage}}"),)),
                Panel(
                    "Frames of video per second",
                    (
                        (
                            f"max by (stage) ({m.RUN_FRAMES_PER_STEP.name}{OF_STAGE}) * on (stage)"
                            f" max by (stage) (rate({m.STEP_SECONDS.name}_count{OF_STAGE}{STEP}))",
                            "{{stage}}",
                        ),
                    ),
                    help="Frames of a step, the mean of the stage so far, by steps per second.",
                ),
                Panel("Tokens per second", ((of_leader(m.TOKENS_PER_SECOND), "{{stage}}"),)),
                Panel(
                    "Utilisation of the GPUs",
                    (
                        (of_leader(m.MFU_RATIO), "MFU, {{stage}}"),
                        (of_leader(m.HFU_RATIO), "HFU, {{stage}}"),
                        (of_leader(m.USEFUL_MFU_RATIO), "useful MFU, {{stage}}"),
                    ),
                    "percentunit",
                    help="HFU counts what is computed again in the backward pass; useful MFU leaves padded text out.",
                ),
                Panel(
                    "Where the time of a step goes",
                    (
                        (
                            f"max by (part) (rate({m.STEP_PART_SECONDS.name}{OF_RUN}{STEP}))",
                            "{{part}}",
                        ),
                        (f"max(rate({m.DATA_STALL_SECONDS.name}{OF_RUN}{STEP}))", "waiting for data"),
                        (f"max(rate({m.CHECKPOINT_STALL_SECONDS.name}{OF_RUN}{STEP}))", "waiting for a checkpoint"),
                    ),
                    "percentunit",
                    "stack",
                    help="Seconds of each second. Communication that hides behind computation is not in it.",
                ),
                Panel("Most memory held by a GPU", ((of_leader(m.MEMORY_PEAK_BYTES), "{{stage}}"),), "bytes"),
                Panel(
                    "Kernel of attention",
                    ((f"max by (kernel) ({m.ATTENTION.name}{OF_RUN})", "{{kernel}}"),),
                    kind="name",
                    help="Chosen once at the start of a stage; math keeps all scores in memory and is slow.",
                ),
                Panel(
                    "Step time",
                    ((quantile(0.5, m.STEP_SECONDS, OF_RUN), "p50"), (quantile(0.99, m.STEP_SECONDS, OF_RUN), "p99")),
                    "s",
                ),
                Panel(
                    "Share of the time that steps wait",
                    (
                        (f"max(rate({m.DATA_STALL_SECONDS.name}{OF_RUN}{STEP}))", "for data"),
                        (f"max(rate({m.CHECKPOINT_STALL_SECONDS.name}{OF_RUN}{STEP}))", "for a checkpoint"),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Spread of the ranks' compute time",
                    ((of_leader(m.WORLD_SPREAD_RATIO), "{{stage}}"),),
                    "percentunit",
                    help="Slowest minus fastest over the mean; a straggler holds everybody up by this share.",
                ),
                Panel(
                    "Samples, tokens and FLOPs an hour",
                    (
                        (f"max(rate({m.SAMPLES.name}{OF_RUN}{STEP})) * 3600", "samples"),
                        (f"max(rate({m.TOKENS.name}{OF_RUN}{STEP})) * 3600", "tokens"),
                        (f"max(rate({m.MODEL_FLOPS.name}{OF_RUN}{STEP})) * 3600", "model FLOPs"),
                    ),
                ),
            ),
        ),
        (
            "Uptime, faults and recoveries in the time shown",
            (
                Panel("Uptime", ((_of_phase("Running"), ""),), "percentunit", "number", "Share of the time.", 4),
                Panel("Training time", ((f"{_of_phase('Running')} * $__range_s", ""),), "s", "number", span=4),
                Panel("Faults", ((f"sum({_FAULTS})", ""),), kind="number", span=4),
                Panel("Faults by type", ((f"sum by (cause) ({_FAULTS})", "{{cause}}"),), kind="number", span=4),
                Panel(
                    "Recovery time by type of fault",
                    ((f"max by (cause) ({m.RECOVERY_SECONDS.name}{OF_RUN})", "{{cause}}"),),
                    "s",
                    "number",
                    "From the fault to the first step after it, the last one of each type.",
                    8,
                ),
                Panel(
                    "Recoveries by itself",
                    ((_times("Restarting"), ""),),
                    kind="number",
                    help="Times in which the world was made anew; those within one scrape are not seen.",
                    span=6,
                ),
                Panel(
                    "Time in recoveries by itself",
                    ((f"{_of_phase('Restarting')} * $__range_s", ""),),
                    "s",
                    "number",
                    span=6,
                ),
                Panel("Suspensions", ((_times("Suspended"), ""),), kind="number", help="By hand or budget.", span=6),
                Panel("Time suspended", ((f"{_of_phase('Suspended')} * $__range_s", ""),), "s", "number", span=6),
            ),
        ),
        (
            "Elasticity and checkpoints",
            (
                Panel("Nodes", ((f"max by (kind) ({m.RUN_NODES.name}{OF_RUN})", "{{kind}}"),)),
                Panel(
                    "Generation",
                    (
                        (f"max({m.RUN_GENERATION.name}{OF_RUN})", "decided"),
                        (f"max by (pod) ({m.GENERATION.name}{OF_RUN})", "{{pod}}"),
                    ),
                    help="A click on a pod opens its node.",
                    opens="node",
                ),
                Panel("Restarts", ((f"sum by (cause) ({m.RESTARTS.name}{OF_RUN})", "{{cause}}"),), kind="stack"),
                Panel("Worker processes of the world", ((f"max({m.WORLD_SIZE.name}{OF_RUN})", ""),)),
                Panel(
                    "Steps that a fault would cost now",
                    ((f"max({m.STEP.name}{OF_RUN}) - max({m.CHECKPOINT_LAST_STEP.name}{OF_RUN})", ""),),
                    help="Last step minus the step of the newest complete checkpoint.",
                ),
                Panel(
                    "Checkpoints",
                    (
                        (f"max({m.CHECKPOINT_COMMITS.name}{OF_RUN})", "completed by the leader's pod"),
                        (f"max({m.CHECKPOINT_SKIPPED.name}{OF_RUN})", "refused at a start"),
                        (
                            or_none(f"sum({m.HOUSEKEEPING_FAILURES.name}{OF_RUN})"),
                            "failures of what is done beside them",
                        ),
                    ),
                ),
                Panel(
                    "Age of the newest checkpoint",
                    ((f"time() - max by (stage) ({m.RUN_SAVED_AT.name}{OF_STAGE})", "{{stage}}"),),
                    "s",
                    help="What a fault would throw away now.",
                ),
                Panel("Size of a checkpoint", ((f"max({m.CHECKPOINT_BYTES.name}{OF_RUN})", ""),), "bytes"),
            ),
        ),
        (
            "Money",
            (
                Panel(
                    "GPU time by use",
                    ((f"sum by (bucket) ({m.GPU_SECONDS.name}{OF_RUN})", "{{bucket}}"),),
                    "s",
                    "stack",
                    "As it was first counted.",
                ),
                Panel(
                    "Cost of each stage",
                    (
                        (
                            spent(m.STAGE_COST_MICROS, m.STAGE_COST_CORRECTED_MICROS, "stage, currency"),
                            "{{stage}}, spent {{currency}}",
                        ),
                        (
                            f"max by (stage, currency) ({m.STAGE_FORECAST_COST.name}{OF_STAGE})",
                            "{{stage}}, expected {{currency}}",
                        ),
                    ),
                    "money",
                    help="What is expected leaves failures and idle nodes out.",
                ),
                Panel(
                    "Money without progress, by cause",
                    ((spent(m.WASTE_MICROS, m.WASTE_CORRECTED_MICROS, "cause, currency"), "{{cause}} {{currency}}"),),
                    "money",
                    "stack",
                ),
                Panel(
                    "Money by use",
                    ((spent(m.COST_MICROS, m.COST_CORRECTED_MICROS, "bucket, currency"), "{{bucket}} {{currency}}"),),
                    "money",
                    "stack",
                ),
                Panel(
                    "Spent share of the budget, and goodput",
                    (
                        (f"max({m.BUDGET_RATIO.name}{OF_RUN})", "budget"),
                        (f"max({m.GOODPUT_RATIO.name}{OF_RUN})", "goodput"),
                    ),
                    "percentunit",
                ),
                Panel(
                    "GPU time that turned out to be something else",
                    (
                        (
                            f"sum by (bucket, direction) ({m.GPU_SECONDS_CORRECTED.name}{OF_RUN})",
                            "{{bucket}}, {{direction}}",
                        ),
                    ),
                    "s",
                    help="Steps that a fault lost left `productive` and came to `lost`.",
                ),
            ),
        ),
    ),
    (RESTARTS, WORLDS),
    one_run=True,
)
