"""What each Grafana board shows: rows of panels with their queries.

Queries name series by the catalogue's constants, so that a renamed metric cannot leave an empty panel behind.
`$namespace` and `$run` are the boards' variables; a series of one run carries both labels.
"""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate.panels import Board, Panel

_FLEET: Final = '{namespace=~"$namespace"}'
_PRODUCTIVE: Final = '{namespace=~"$namespace", bucket="productive"}'
_RUN: Final = '{namespace="$namespace", run="$run"}'
_STEP: Final = "[$__rate_interval]"
_SHOWN: Final = "[$__range]"


def _p(quantile: float, metric: m.Metric, labels: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) (rate({metric.name}_bucket{labels}{_STEP})))"


def _of_leader(metric: m.Metric) -> str:
    """A fact of the whole world, which the pod of rank 0 tells; the others have no such series or an older one."""
    return f"max by (stage) ({metric.name}{_RUN})"


FLEET: Final = Board(
    "videotrain-fleet",
    "videotrain / fleet and money",
    ("namespace",),
    (
        (
            "Money",
            (
                Panel(
                    "Spent in the time shown",
                    ((f"sum by (currency) (increase({m.COST_MICROS.name}{_FLEET}{_SHOWN})) / 1e6", "{{currency}}"),),
                    kind="number",
                    span=6,
                ),
                Panel(
                    "An hour costs now",
                    ((f"sum by (currency) ({m.COST_RATE_PER_HOUR.name}{_FLEET})", "{{currency}}"),),
                    kind="number",
                    span=6,
                    help="Price of the GPUs that are held at this moment.",
                ),
                Panel(
                    "Expected at the runs' ends",
                    ((f"sum by (currency) ({m.FORECAST_COST.name}{_FLEET})", "{{currency}}"),),
                    kind="number",
                    span=6,
                ),
                Panel(
                    "Goodput in the time shown",
                    (
                        (
                            f"sum(increase({m.GPU_SECONDS.name}{_PRODUCTIVE}{_SHOWN}))"
                            f" / sum(increase({m.GPU_SECONDS.name}{_FLEET}{_SHOWN}))",
                            "",
                        ),
                    ),
                    "percentunit",
                    "number",
                    span=6,
                    help="Productive share of the GPU time that was held.",
                ),
                Panel(
                    "An hour costs, by run",
                    (
                        (
                            f"sum by (namespace, run, currency) ({m.COST_RATE_PER_HOUR.name}{_FLEET})",
                            "{{namespace}}/{{run}} {{currency}}",
                        ),
                    ),
                    kind="stack",
                    span=12,
                    links_to_run=True,
                ),
                Panel(
                    "What the money buys, per hour",
                    (
                        (
                            f"sum by (bucket, currency) (rate({m.COST_MICROS.name}{_FLEET}{_STEP})) * 3600 / 1e6",
                            "{{bucket}} {{currency}}",
                        ),
                    ),
                    kind="stack",
                    span=12,
                    help="Everything but `productive` is what elasticity, data and checkpoints cost.",
                ),
                Panel(
                    "Money without progress per hour, by cause",
                    (
                        (
                            f"sum by (cause, currency) (rate({m.WASTE_MICROS.name}{_FLEET}{_STEP})) * 3600 / 1e6",
                            "{{cause}} {{currency}}",
                        ),
                    ),
                    kind="stack",
                    span=12,
                ),
                Panel(
                    "Spent share of the budgets",
                    ((f"max by (namespace, run) ({m.BUDGET_RATIO.name}{_FLEET})", "{{namespace}}/{{run}}"),),
                    "percentunit",
                    span=12,
                    links_to_run=True,
                ),
                Panel(
                    "GPUs held, by use",
                    ((f"sum by (bucket) (rate({m.GPU_SECONDS.name}{_FLEET}{_STEP}))", "{{bucket}}"),),
                    kind="stack",
                    span=12,
                ),
            ),
        ),
        (
            "Runs",
            (
                Panel("Runs by phase", ((f"sum by (phase) ({m.RUN_PHASE.name}{_FLEET})", "{{phase}}"),), kind="stack"),
                Panel(
                    "Goodput since the start, by run",
                    ((f"max by (namespace, run) ({m.GOODPUT_RATIO.name}{_FLEET})", "{{namespace}}/{{run}}"),),
                    "percentunit",
                    links_to_run=True,
                ),
                Panel(
                    "MFU, by run",
                    ((f"max by (namespace, run) ({m.RUN_MFU_RATIO.name}{_FLEET})", "{{namespace}}/{{run}}"),),
                    "percentunit",
                    links_to_run=True,
                    help="Model FLOPs over the GPUs' dense bf16 peak; no series where the peak of a GPU is not known.",
                ),
                Panel(
                    "Samples per second, by run",
                    ((f"max by (namespace, run) ({m.RUN_SAMPLES_PER_SECOND.name}{_FLEET})", "{{namespace}}/{{run}}"),),
                    links_to_run=True,
                ),
                Panel(
                    "Restarts an hour, by cause",
                    ((f"sum by (cause) (rate({m.RESTARTS.name}{_FLEET}{_STEP})) * 3600", "{{cause}}"),),
                    kind="stack",
                ),
                Panel(
                    "Time from the last fault to the first step after it",
                    ((f"max by (namespace, run) ({m.RECOVERY_SECONDS.name}{_FLEET})", "{{namespace}}/{{run}}"),),
                    "s",
                    links_to_run=True,
                ),
            ),
        ),
    ),
)

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
                    ((f"max by (model, autoencoder, uid) ({m.RUN_INFO.name}{_RUN})", "{{model}} on {{autoencoder}}"),),
                    kind="name",
                    span=6,
                ),
                Panel(
                    "Phase",
                    ((f"max by (phase) ({m.RUN_PHASE.name}{_RUN}) == 1", "{{phase}}"),),
                    kind="name",
                    span=3,
                ),
                Panel(
                    "Stage",
                    ((f"max by (stage, task) ({m.RUN_STAGE.name}{_RUN}) == 1", "{{stage}} ({{task}})"),),
                    kind="name",
                    span=3,
                ),
                Panel(
                    "Done of each stage",
                    (
                        (
                            f"max by (stage) ({m.RUN_STEP.name}{_RUN})"
                            f" / max by (stage) ({m.RUN_STEPS_PLANNED.name}{_RUN})",
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
                        (f"sum by (currency) ({m.COST_MICROS.name}{_RUN}) / 1e6", "spent {{currency}}"),
                        (f"max by (currency) ({m.FORECAST_COST.name}{_RUN})", "expected {{currency}}"),
                        (
                            f"max by (bound, currency) ({m.FORECAST_COST_BOUND.name}{_RUN})",
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
                        (_of_leader(m.LOSS), "training, {{stage}}"),
                        (_of_leader(m.VALIDATION_LOSS), "held out, {{stage}}"),
                    ),
                ),
                Panel("Loss by size class", ((f"max by (bucket) ({m.BUCKET_LOSS.name}{_RUN})", "{{bucket}}"),), span=8),
                Panel(
                    "Held-out loss by size class",
                    ((f"max by (bucket) ({m.VALIDATION_BUCKET_LOSS.name}{_RUN})", "{{bucket}}"),),
                ),
                Panel("Gradient norm before clipping", ((_of_leader(m.GRADIENT_NORM), "{{stage}}"),)),
                Panel("Learning rate", ((_of_leader(m.LEARNING_RATE), "{{stage}}"),), "sci"),
                Panel(
                    "Step",
                    ((_of_leader(m.STEP), "{{stage}}"), (_of_leader(m.STEPS_PLANNED), "planned, {{stage}}")),
                ),
            ),
        ),
        (
            "Speed",
            (
                Panel("Samples per second", ((_of_leader(m.SAMPLES_PER_SECOND), "{{stage}}"),)),
                Panel("Tokens per second", ((_of_leader(m.TOKENS_PER_SECOND), "{{stage}}"),)),
                Panel(
                    "Utilisation of the GPUs",
                    (
                        (_of_leader(m.MFU_RATIO), "MFU, {{stage}}"),
                        (_of_leader(m.HFU_RATIO), "HFU, {{stage}}"),
                        (_of_leader(m.USEFUL_MFU_RATIO), "useful MFU, {{stage}}"),
                    ),
                    "percentunit",
                    help="HFU counts what is computed again in the backward pass; useful MFU leaves padded text out.",
                ),
                Panel(
                    "Where the time of a step goes",
                    (
                        (
                            f"max by (part) (rate({m.STEP_PART_SECONDS.name}{_RUN}{_STEP}))",
                            "{{part}}",
                        ),
                        (f"max(rate({m.DATA_STALL_SECONDS.name}{_RUN}{_STEP}))", "waiting for data"),
                        (f"max(rate({m.CHECKPOINT_STALL_SECONDS.name}{_RUN}{_STEP}))", "waiting for a checkpoint"),
                    ),
                    "percentunit",
                    "stack",
                    help="Seconds of each second. Communication that hides behind computation is not in it.",
                ),
                Panel("Most memory held by a GPU", ((_of_leader(m.MEMORY_PEAK_BYTES), "{{stage}}"),), "bytes"),
                Panel(
                    "Kernel of attention",
                    ((f"max by (kernel) ({m.ATTENTION.name}{_RUN})", "{{kernel}}"),),
                    kind="name",
                    help="Chosen once at the start of a stage; math keeps all scores in memory and is slow.",
                ),
                Panel(
                    "Step time",
                    ((_p(0.5, m.STEP_SECONDS, _RUN), "p50"), (_p(0.99, m.STEP_SECONDS, _RUN), "p99")),
                    "s",
                ),
                Panel(
                    "Share of the time that steps wait",
                    (
                        (f"max(rate({m.DATA_STALL_SECONDS.name}{_RUN}{_STEP}))", "for data"),
                        (f"max(rate({m.CHECKPOINT_STALL_SECONDS.name}{_RUN}{_STEP}))", "for a checkpoint"),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Arrival of a sample, p99 of the slowest rank",
                    ((_of_leader(m.SLOWEST_SAMPLE_SECONDS), "{{stage}}"),),
                    "s",
                ),
                Panel(
                    "Requests for samples per second",
                    ((f"sum by (kind) (rate({m.SAMPLE_REQUESTS.name}{_RUN}{_STEP}))", "{{kind}}"),),
                    help="Second ones go out beside first ones that are late; others follow damage.",
                ),
                Panel(
                    "Samples from the nodes' caches per second",
                    ((f"sum by (outcome) (rate({m.SAMPLE_CACHE_READS.name}{_RUN}{_STEP}))", "{{outcome}}"),),
                    help="Where train.sampleCacheGibibytes is set; what a node reads first is a miss.",
                ),
                Panel(
                    "Samples in the fullest node's cache",
                    ((_of_leader(m.SAMPLE_CACHE_BYTES), "{{stage}}"),),
                    "bytes",
                ),
                Panel(
                    "Stored by encoding per clip",
                    (
                        (
                            f"max(rate({m.STORED_SAMPLE_BYTES.name}{_RUN}{_STEP}))"
                            f" / max(rate({m.SAMPLES.name}{_RUN}{_STEP}))",
                            "per clip",
                        ),
                    ),
                    "bytes",
                    help="Its device is busy in forward passes, and idle while it waits for data.",
                ),
                Panel(
                    "Spread of the ranks' compute time",
                    ((_of_leader(m.WORLD_SPREAD_RATIO), "{{stage}}"),),
                    "percentunit",
                    help="Slowest minus fastest over the mean; a straggler holds everybody up by this share.",
                ),
                Panel(
                    "Pods whose ranks are slowest most often",
                    (
                        (
                            f"topk(5, max by (pod) (rate({m.SLOWEST_STEPS.name}{_RUN}{_STEP})))"
                            f" / scalar(max(rate({m.STEP_SECONDS.name}_count{_RUN}{_STEP})))",
                            "{{pod}}",
                        ),
                        (_of_leader(m.STRAGGLER_RATIO), "slowest rank over the median, {{stage}}"),
                    ),
                    "percentunit",
                    help="Share of the steps. In an even world all pods take turns.",
                ),
                Panel(
                    "Samples, tokens and FLOPs an hour",
                    (
                        (f"max(rate({m.SAMPLES.name}{_RUN}{_STEP})) * 3600", "samples"),
                        (f"max(rate({m.TOKENS.name}{_RUN}{_STEP})) * 3600", "tokens"),
                        (f"max(rate({m.MODEL_FLOPS.name}{_RUN}{_STEP})) * 3600", "model FLOPs"),
                    ),
                ),
            ),
        ),
        (
            "Elasticity and checkpoints",
            (
                Panel("Nodes", ((f"max by (kind) ({m.RUN_NODES.name}{_RUN})", "{{kind}}"),)),
                Panel(
                    "Generation",
                    (
                        (f"max({m.RUN_GENERATION.name}{_RUN})", "decided"),
                        (f"max by (pod) ({m.GENERATION.name}{_RUN})", "{{pod}}"),
                    ),
                ),
                Panel("Restarts", ((f"sum by (cause) ({m.RESTARTS.name}{_RUN})", "{{cause}}"),), kind="stack"),
                Panel(
                    "Workers' states", ((f"sum by (state) ({m.WORKER_STATE.name}{_RUN})", "{{state}}"),), kind="stack"
                ),
                Panel("Worker processes of the world", ((f"max({m.WORLD_SIZE.name}{_RUN})", ""),)),
                Panel(
                    "Ends of worker processes by exit code",
                    ((f"sum by (code) ({m.WORKER_EXITS.name}{_RUN})", "{{code}}"),),
                    kind="stack",
                ),
                Panel(
                    "Steps that a fault would cost now",
                    ((f"max({m.STEP.name}{_RUN}) - max({m.CHECKPOINT_LAST_STEP.name}{_RUN})", ""),),
                    help="Last step minus the step of the newest complete checkpoint.",
                ),
                Panel(
                    "Checkpoints",
                    (
                        (f"max({m.CHECKPOINT_COMMITS.name}{_RUN})", "completed by the leader's pod"),
                        (f"max({m.CHECKPOINT_SKIPPED.name}{_RUN})", "refused at a start"),
                        (f"sum({m.HOUSEKEEPING_FAILURES.name}{_RUN})", "failures of what is done beside them"),
                    ),
                ),
                Panel("Size of a checkpoint", ((f"max({m.CHECKPOINT_BYTES.name}{_RUN})", ""),), "bytes"),
            ),
        ),
        (
            "Money",
            (
                Panel(
                    "GPU time by use",
                    ((f"sum by (bucket) ({m.GPU_SECONDS.name}{_RUN})", "{{bucket}}"),),
                    "s",
                    "stack",
                ),
                Panel(
                    "Cost of each stage",
                    (
                        (
                            f"sum by (stage, currency) ({m.STAGE_COST_MICROS.name}{_RUN}) / 1e6",
                            "{{stage}}, spent {{currency}}",
                        ),
                        (
                            f"max by (stage, currency) ({m.STAGE_FORECAST_COST.name}{_RUN})",
                            "{{stage}}, expected {{currency}}",
                        ),
                    ),
                    help="What is expected leaves failures and idle nodes out.",
                ),
                Panel(
                    "Money without progress, by cause",
                    ((f"sum by (cause, currency) ({m.WASTE_MICROS.name}{_RUN}) / 1e6", "{{cause}} {{currency}}"),),
                    kind="stack",
                ),
                Panel(
                    "Money by use",
                    ((f"sum by (bucket, currency) ({m.COST_MICROS.name}{_RUN}) / 1e6", "{{bucket}} {{currency}}"),),
                    kind="stack",
                ),
                Panel(
                    "Spent share of the budget, and goodput",
                    (
                        (f"max({m.BUDGET_RATIO.name}{_RUN})", "budget"),
                        (f"max({m.GOODPUT_RATIO.name}{_RUN})", "goodput"),
                    ),
                    "percentunit",
                ),
            ),
        ),
        (
            "Curation",
            (
                Panel("Clips kept", ((f"max by (stage) ({m.CURATION_CLIPS.name}{_RUN})", "{{stage}}"),), span=12),
                Panel(
                    "Dropped, by reason",
                    ((f"sum by (reason) ({m.CURATION_DROPPED.name}{_RUN})", "{{reason}}"),),
                    kind="stack",
                    span=12,
                ),
            ),
        ),
    ),
)

OPERATOR: Final = Board(
    "videotrain-operator",
    "videotrain / operator",
    (),
    (
        (
            "The operator itself",
            (
                Panel("Leaders", ((f"sum({m.LEADER.name})", ""),), help="1 in a healthy installation."),
                Panel(
                    "A pass takes",
                    ((_p(0.5, m.RECONCILE_SECONDS, ""), "p50"), (_p(0.99, m.RECONCILE_SECONDS, ""), "p99")),
                    "s",
                ),
                Panel(
                    "Passes that ended with an error, per hour",
                    ((f"sum by (error) (rate({m.RECONCILE_ERRORS.name}{_STEP})) * 3600", "{{error}}"),),
                    kind="stack",
                ),
                Panel(
                    "Requests to the API server per second",
                    ((f"sum by (verb, kind) (rate({m.API_REQUESTS.name}{_STEP}))", "{{verb}} {{kind}}"),),
                    "reqps",
                    "stack",
                ),
                Panel(
                    "Answers that were no success, per second",
                    (
                        (
                            f'sum by (code, verb, kind) (rate({m.API_REQUESTS.name}{{code!~"2.."}}{_STEP}))',
                            "{{code}} {{verb}} {{kind}}",
                        ),
                    ),
                    "reqps",
                    "stack",
                ),
                Panel("Conflicts per hour", ((f"sum(rate({m.API_CONFLICTS.name}{_STEP})) * 3600", ""),)),
                Panel(
                    "Watches taken up again, per hour",
                    ((f"sum by (kind) (rate({m.WATCH_RESTARTS.name}{_STEP})) * 3600", "{{kind}}"),),
                    kind="stack",
                ),
                Panel(
                    "Time since the API server gave a sign",
                    ((f"max by (kind) ({m.WATCH_SILENT_SECONDS.name})", "{{kind}}"),),
                    "s",
                    help="By watch; a replica that heard nothing for three minutes on one of them is not ready.",
                ),
                Panel(
                    "Events per hour",
                    ((f"sum by (reason) (rate({m.EVENTS.name}{_STEP})) * 3600", "{{reason}}"),),
                    kind="stack",
                ),
                Panel(
                    "Admission reviews per second",
                    ((f"sum by (outcome) (rate({m.WEBHOOK_REVIEWS.name}{_STEP}))", "{{outcome}}"),),
                    "reqps",
                    "stack",
                ),
                Panel(
                    "Callers of the webhook that were turned away, per second",
                    ((f"sum by (reason) (rate({m.WEBHOOK_REFUSED.name}{_STEP}))", "{{reason}}"),),
                    "reqps",
                    "stack",
                    help="An API server comes again by itself. Many of these are a flood, or a client certificate that "
                    "does not fit.",
                ),
                Panel(
                    "Processes that judge reviews and ended, per hour",
                    ((f"sum(rate({m.WEBHOOK_JUDGES_ENDED.name}{_STEP})) * 3600", ""),),
                    help="Killed because a review took too long or too much memory; the next review gets a new one.",
                ),
                Panel(
                    "Answers of agents that count as silence, per second",
                    ((f"sum by (reason) (rate({m.AGENT_ANSWERS_REFUSED.name}{_STEP}))", "{{reason}}"),),
                    "reqps",
                    "stack",
                    help="Not signed with the run's key, or not readable: somebody else answers, or the master key was "
                    "replaced while pods ran.",
                ),
                Panel(
                    "Runs whose passes fail",
                    ((f"count({m.RUN_RECONCILED.name} == 0) or vector(0)", ""),),
                    help="After three failed passes in a row. The condition Reconciled of each says why.",
                ),
                Panel(
                    "Values that nobody can read",
                    ((f"sum by (namespace, run) ({m.RUN_UNREADABLE.name}) > 0", "{{namespace}}/{{run}}"),),
                    kind="stack",
                    help="In status, ledger, labels and annotations. They count as not written.",
                ),
                Panel(
                    "Lost nodes are not believed",
                    ((f"max({m.NODES_UNTRUSTED.name})", ""),),
                    help="1 while so many nodes are lost at once that the operator does not act on it.",
                ),
                Panel(
                    "The time is not trusted",
                    ((f"max({m.TIME_UNTRUSTED.name})", ""),),
                    help="1 while the API server's clock jumped or was not confirmed yet: no deadline or budget acts.",
                ),
            ),
        ),
    ),
)

BOARDS: Final = (FLEET, RUN, OPERATOR)
"""Every board of the chart."""
