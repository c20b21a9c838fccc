"""One run: where it stands, what it learns, how fast it is, what it waits for and what it costs."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate.boards.queries import OF_RUN, STEP, of_leader, quantile
from videotrain_api.generate.panels import Board, Panel

RUN: Final = Board(
    "videotrain-run",
    "videotrain / run",
    ("namespace", "run"),
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
                        (f"sum by (currency) ({m.COST_MICROS.name}{OF_RUN}) / 1e6", "spent {{currency}}"),
                        (f"max by (currency) ({m.FORECAST_COST.name}{OF_RUN})", "expected {{currency}}"),
                        (
                            f"max by (bound, currency) ({m.FORECAST_COST_BOUND.name}{OF_RUN})",
                            "expected {{currency}}, 80 % {{bound}}",
                        ),
                    ),
                    kind="number",
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
                    "Step",
                    ((of_leader(m.STEP), "{{stage}}"), (of_leader(m.STEPS_PLANNED), "planned, {{stage}}")),
                ),
            ),
        ),
        (
            "Speed",
            (
                Panel("Samples per second", ((of_leader(m.SAMPLES_PER_SECOND), "{{stage}}"),)),
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
                    "Arrival of a sample, p99 of the slowest rank",
                    ((of_leader(m.SLOWEST_SAMPLE_SECONDS), "{{stage}}"),),
                    "s",
                ),
                Panel(
                    "Requests for samples per second",
                    ((f"sum by (kind) (rate({m.SAMPLE_REQUESTS.name}{OF_RUN}{STEP}))", "{{kind}}"),),
                    help="Second ones go out beside first ones that are late; others follow damage.",
                ),
                Panel(
                    "Samples from the nodes' caches per second",
                    ((f"sum by (outcome) (rate({m.SAMPLE_CACHE_READS.name}{OF_RUN}{STEP}))", "{{outcome}}"),),
                    help="Where train.sampleCacheGibibytes is set; what a node reads first is a miss.",
                ),
                Panel(
                    "Samples in the fullest node's cache",
                    ((of_leader(m.SAMPLE_CACHE_BYTES), "{{stage}}"),),
                    "bytes",
                ),
                Panel(
                    "Stored by encoding per clip",
                    (
                        (
                            f"max(rate({m.STORED_SAMPLE_BYTES.name}{OF_RUN}{STEP}))"
                            f" / max(rate({m.SAMPLES.name}{OF_RUN}{STEP}))",
                            "per clip",
                        ),
                    ),
                    "bytes",
                    help="Its device is busy in forward passes, and idle while it waits for data.",
                ),
                Panel(
                    "Spread of the ranks' compute time",
                    ((of_leader(m.WORLD_SPREAD_RATIO), "{{stage}}"),),
                    "percentunit",
                    help="Slowest minus fastest over the mean; a straggler holds everybody up by this share.",
                ),
                Panel(
                    "Pods whose ranks are slowest most often",
                    (
                        (
                            f"topk(5, max by (pod) (rate({m.SLOWEST_STEPS.name}{OF_RUN}{STEP})))"
                            f" / scalar(max(rate({m.STEP_SECONDS.name}_count{OF_RUN}{STEP})))",
                            "{{pod}}",
                        ),
                        (of_leader(m.STRAGGLER_RATIO), "slowest rank over the median, {{stage}}"),
                    ),
                    "percentunit",
                    help="Share of the steps. In an even world all pods take turns.",
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
            "Elasticity and checkpoints",
            (
                Panel("Nodes", ((f"max by (kind) ({m.RUN_NODES.name}{OF_RUN})", "{{kind}}"),)),
                Panel(
                    "Generation",
                    (
                        (f"max({m.RUN_GENERATION.name}{OF_RUN})", "decided"),
                        (f"max by (pod) ({m.GENERATION.name}{OF_RUN})", "{{pod}}"),
                    ),
                ),
                Panel("Restarts", ((f"sum by (cause) ({m.RESTARTS.name}{OF_RUN})", "{{cause}}"),), kind="stack"),
                Panel(
                    "Workers' states", ((f"sum by (state) ({m.WORKER_STATE.name}{OF_RUN})", "{{state}}"),), kind="stack"
                ),
                Panel("Worker processes of the world", ((f"max({m.WORLD_SIZE.name}{OF_RUN})", ""),)),
                Panel(
                    "Ends of worker processes by exit code",
                    ((f"sum by (code) ({m.WORKER_EXITS.name}{OF_RUN})", "{{code}}"),),
                    kind="stack",
                ),
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
                        (f"sum({m.HOUSEKEEPING_FAILURES.name}{OF_RUN})", "failures of what is done beside them"),
                    ),
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
                ),
                Panel(
                    "Cost of each stage",
                    (
                        (
                            f"sum by (stage, currency) ({m.STAGE_COST_MICROS.name}{OF_RUN}) / 1e6",
                            "{{stage}}, spent {{currency}}",
                        ),
                        (
                            f"max by (stage, currency) ({m.STAGE_FORECAST_COST.name}{OF_RUN})",
                            "{{stage}}, expected {{currency}}",
                        ),
                    ),
                    help="What is expected leaves failures and idle nodes out.",
                ),
                Panel(
                    "Money without progress, by cause",
                    ((f"sum by (cause, currency) ({m.WASTE_MICROS.name}{OF_RUN}) / 1e6", "{{cause}} {{currency}}"),),
                    kind="stack",
                ),
                Panel(
                    "Money by use",
                    ((f"sum by (bucket, currency) ({m.COST_MICROS.name}{OF_RUN}) / 1e6", "{{bucket}} {{currency}}"),),
                    kind="stack",
                ),
                Panel(
                    "Spent share of the budget, and goodput",
                    (
                        (f"max({m.BUDGET_RATIO.name}{OF_RUN})", "budget"),
                        (f"max({m.GOODPUT_RATIO.name}{OF_RUN})", "goodput"),
                    ),
                    "percentunit",
                ),
            ),
        ),
        (
            "Curation",
            (
                Panel("Clips kept", ((f"max by (stage) ({m.CURATION_CLIPS.name}{OF_RUN})", "{{stage}}"),), span=12),
                Panel(
                    "Dropped, by reason",
                    ((f"sum by (reason) ({m.CURATION_DROPPED.name}{OF_RUN})", "{{reason}}"),),
                    kind="stack",
                    span=12,
                ),
            ),
        ),
    ),
)
