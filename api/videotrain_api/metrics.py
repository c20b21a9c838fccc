"""The metric catalogue: every series that an agent or the operator exposes, and the only place where one is named.

Conventions (checked by `promtool check metrics` in the tests): counters end in `_total`, units are base units and stand
at the end of the name, and no label is called `job` or `instance` (a scrape overwrites them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Emitter = Literal["agent", "operator"]

PREFIX: Final = "videotrain_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of the Prometheus text format that the agent and the operator serve."""

RUN_LABELS: Final = ("namespace", "run")
"""On every operator series about one run."""
AGENT_LABELS: Final = ("namespace", "run", "stage", "pod")
"""On every agent series; one pod serves the series of its own workers."""

STEP_SECONDS_BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0)
"""Upper bounds of the step time histogram: tiny CPU steps to 768px steps of the 11B model, seconds."""
RECONCILE_SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the reconcile time histogram, seconds."""


@dataclass(frozen=True)
class Metric:
    """One series of the catalogue."""

    name: str
    """Full name, as in a query."""
    kind: Kind
    emitter: Emitter
    """Who exposes it."""
    help: str
    """One sentence with the unit."""
    unit: str
    """Base unit of the value; empty for counts, states and ratios."""
    labels: tuple[str, ...]
    """Label names in the order in which they are written."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""


def _agent(
    name: str, kind: Kind, help_text: str, unit: str = "", more: tuple[str, ...] = (), buckets: tuple[float, ...] = ()
) -> Metric:
    return Metric(PREFIX + name, kind, "agent", help_text, unit, AGENT_LABELS + more, buckets)


def _run(name: str, kind: Kind, help_text: str, unit: str = "", more: tuple[str, ...] = ()) -> Metric:
    return Metric(PREFIX + name, kind, "operator", help_text, unit, RUN_LABELS + more)


def _operator(
    name: str, kind: Kind, help_text: str, unit: str = "", labels: tuple[str, ...] = (), buckets: tuple[float, ...] = ()
) -> Metric:
    return Metric(PREFIX + name, kind, "operator", help_text, unit, labels, buckets)


# Agent: facts of the workers of one pod.
STEP: Final = _agent("step", "gauge", "Last finished optimizer step or work unit of the stage.")
STEPS_PLANNED: Final = _agent("steps_planned", "gauge", "Steps or work units of the whole stage.")
LOSS: Final = _agent("loss", "gauge", "Mean training loss of the last step.")
BUCKET_LOSS: Final = _agent(
    "bucket_loss", "gauge", "Mean training loss of a size class in its last step.", more=("bucket",)
)
VALIDATION_LOSS: Final = _agent("validation_loss", "gauge", "Newest mean loss on held-out samples.")
VALIDATION_BUCKET_LOSS: Final = _agent(
    "validation_bucket_loss", "gauge", "Newest mean loss on the held-out samples of a size class.", more=("bucket",)
)
GRADIENT_NORM: Final = _agent("gradient_norm", "gauge", "Global gradient norm of the last step before clipping.")
LEARNING_RATE: Final = _agent("learning_rate", "gauge", "Learning rate of the last step.")
STEP_SECONDS: Final = _agent(
    "step_seconds", "histogram", "Time of an optimizer step in seconds.", "seconds", buckets=STEP_SECONDS_BUCKETS
)
WORLD_SPREAD_RATIO: Final = _agent(
    "world_spread_ratio", "gauge", "Slowest minus fastest compute time of the ranks in the last step over their mean."
)
STRAGGLER_RATIO: Final = _agent(
    "straggler_ratio", "gauge", "How much longer than the median the slowest rank took for a micro-batch, last step."
)
SLOWEST_STEPS: Final = _agent(
    "slowest_steps_total", "counter", "Steps in which a rank of this pod was the slowest of the world."
)
STEP_PART_SECONDS: Final = _agent(
    "step_part_seconds_total",
    "counter",
    "Time of steps in seconds by what the ranks did: forward, backward, communication that nothing hides, optimizer.",
    "seconds",
    ("part",),
)
MEMORY_PEAK_BYTES: Final = _agent(
    "memory_peak_bytes", "gauge", "Most bytes that a GPU of the world held in the last 20 steps.", "bytes"
)
SAMPLES: Final = _agent("samples_total", "counter", "Samples of the whole world that were trained on or processed.")
TOKENS: Final = _agent("tokens_total", "counter", "Image and text tokens of the whole world that were trained on.")
MODEL_FLOPS: Final = _agent(
    "model_flops_total",
    "counter",
    "Forward and backward floating point operations of the whole world by formula, without recomputation.",
)
MFU_RATIO: Final = _agent(
    "mfu_ratio",
    "gauge",
    "Model FLOPs per second over the dense bf16 peak of the world's GPUs, last 20 steps; none if a peak is not known.",
)
HFU_RATIO: Final = _agent(
    "hfu_ratio", "gauge", "The same as the MFU with what is computed again in the backward pass, last 20 steps."
)
USEFUL_MFU_RATIO: Final = _agent(
    "useful_mfu_ratio", "gauge", "The same as the MFU as if no text were padded, last 20 steps."
)
SAMPLES_PER_SECOND: Final = _agent("samples_per_second", "gauge", "Samples per second of the world, last 20 steps.")
TOKENS_PER_SECOND: Final = _agent("tokens_per_second", "gauge", "Tokens per second of the world, last 20 steps.")
DATA_STALL_SECONDS: Final = _agent(
    "data_stall_seconds_total", "counter", "Time in which steps waited for input in seconds.", "seconds"
)
SAMPLE_REQUESTS: Final = _agent(
    "sample_requests_total",
    "counter",
    "Requests for samples of the whole world: the first, a second one beside one that is late, or again for damage.",
    more=("kind",),
)
SAMPLE_CACHE_READS: Final = _agent(
    "sample_cache_reads_total",
    "counter",
    "Samples of the whole world that a node's cache was asked for: hit or miss.",
    more=("outcome",),
)
SAMPLE_CACHE_BYTES: Final = _agent(
    "sample_cache_bytes", "gauge", "Bytes of samples in the fullest node's cache.", "bytes"
)
SLOWEST_SAMPLE_SECONDS: Final = _agent(
    "slowest_sample_seconds",
    "gauge",
    "99th percentile of the time that a sample takes to arrive in seconds, newest 256 of the slowest rank.",
    "seconds",
)
STORED_SAMPLE_BYTES: Final = _agent(
    "stored_sample_bytes_total", "counter", "Size of the samples that encoding has stored, of the whole world.", "bytes"
)
CHECKPOINT_STALL_SECONDS: Final = _agent(
    "checkpoint_stall_seconds_total", "counter", "Time in which steps waited for a checkpoint in seconds.", "seconds"
)
CHECKPOINT_LAST_STEP: Final = _agent("checkpoint_last_step", "gauge", "Step of the newest complete checkpoint.")
CHECKPOINT_COMMITS: Final = _agent("checkpoint_commits_total", "counter", "Checkpoints that were completed.")
CHECKPOINT_BYTES: Final = _agent(
    "checkpoint_last_size_bytes", "gauge", "Size of the newest complete checkpoint in bytes.", "bytes"
)
ATTENTION: Final = _agent("attention_info", "gauge", "1 for the kernel that attention runs on.", more=("kernel",))
CHECKPOINT_SKIPPED: Final = _agent(
    "checkpoint_skipped_total", "counter", "Checkpoints that were refused at a start because they did not fit."
)
HOUSEKEEPING_FAILURES: Final = _agent(
    "checkpoint_housekeeping_failures_total",
    "counter",
    "Failures beside the work: of retention, of the order log, of naming the latest checkpoint, of copies in memory, "
    "of storing records and the end of failed generations, of telling trackers.",
    more=("task",),
)
WORKER_STATE: Final = _agent(
    "worker_state", "gauge", "1 for the state that the pod's workers are in, 0 for the others.", more=("state",)
)
GENERATION: Final = _agent("generation", "gauge", "Generation that the pod's workers belong to.")
WORLD_SIZE: Final = _agent("world_size", "gauge", "Worker processes of the generation.")
WORKER_EXITS: Final = _agent("worker_exits_total", "counter", "Ends of worker processes by exit code.", more=("code",))

# Operator: facts of a run from its status and ledger.
RUN_INFO: Final = _run(
    "run_info",
    "gauge",
    "Always 1; names what the run consists of, and the team of its label.",
    more=("uid", "model", "autoencoder", "currency", "team"),
)
RUN_PHASE: Final = _run("run_phase", "gauge", "1 for the phase that the run is in, 0 for the others.", more=("phase",))
RUN_STAGE: Final = _run("run_stage", "gauge", "1 for the current stage of the run.", more=("stage", "task"))
RUN_GENERATION: Final = _run("run_generation", "gauge", "Newest generation number of the run.")
RUN_STEP: Final = _run("run_step", "gauge", "Last finished step of a stage.", more=("stage",))
RUN_STEPS_PLANNED: Final = _run("run_steps_planned", "gauge", "Steps of a whole stage.", more=("stage",))
RUN_FRAMES_PER_STEP: Final = _run(
    "run_frames_per_step",
    "gauge",
    "Frames of video that a step of a stage trains on, its mean so far.",
    more=("stage",),
)
RUN_SAVED_AT: Final = _run(
    "run_saved_timestamp_seconds",
    "gauge",
    "Up to when a training stage is in a checkpoint, in seconds since 1970: the end of the newest step that "
    "one holds; before the first one, the start of the stage.",
    "seconds",
    ("stage",),
)
RUN_NODES: Final = _run("run_nodes", "gauge", "Nodes of the run by kind: current, ready, min or max.", more=("kind",))
RESTARTS: Final = _run(
    "restarts_total", "counter", "Generations that ended before their time, by cause.", more=("cause",)
)
SUSPECT_NODE: Final = _run(
    "suspect_node",
    "gauge",
    "1 for each node that new pods of the run avoid, since something failed there.",
    more=("node",),
)
GPU_SECONDS: Final = _run(
    "gpu_seconds_total",
    "counter",
    "GPU time held in seconds by what it was used for, as it was first counted.",
    "seconds",
    ("bucket",),
)
COST_MICROS: Final = _run(
    "cost_micros_total",
    "counter",
    "Money spent in millionths of the currency by what it bought, as it was first counted.",
    more=("bucket", "currency"),
)
STAGE_COST_MICROS: Final = _run(
    "stage_cost_micros_total",
    "counter",
    "Money spent in millionths of the currency by stage, as it was first counted.",
    more=("stage", "currency"),
)
WASTE_MICROS: Final = _run(
    "waste_micros_total",
    "counter",
    "Money in millionths of the currency that bought no progress, by why: start, idle, data, checkpoint, or what ended "
    "a generation; as it was first counted.",
    more=("cause", "currency"),
)
GPU_SECONDS_CORRECTED: Final = _run(
    "gpu_seconds_corrected_total",
    "counter",
    "GPU time in seconds that left a use (direction out), such as steps that a fault lost, or came to one (in), since "
    "it was counted.",
    "seconds",
    ("bucket", "direction"),
)
COST_CORRECTED_MICROS: Final = _run(
    "cost_corrected_micros_total",
    "counter",
    "Money in millionths of the currency that left what it was said to buy (direction out), or came there (in).",
    more=("bucket", "currency", "direction"),
)
STAGE_COST_CORRECTED_MICROS: Final = _run(
    "stage_cost_corrected_micros_total",
    "counter",
    "Money in millionths of the currency that left a stage (direction out), or came to it (in), since it was counted.",
    more=("stage", "currency", "direction"),
)
WASTE_CORRECTED_MICROS: Final = _run(
    "waste_corrected_micros_total",
    "counter",
    "Money in millionths of the currency that left a cause of waste (direction out), or came to it (in), since it was "
    "counted.",
    more=("cause", "currency", "direction"),
)
COST_RATE_PER_HOUR: Final = _run(
    "cost_rate_per_hour", "gauge", "What the GPUs held now cost in an hour in the currency.", more=("currency",)
)
FORECAST_COST: Final = _run(
    "forecast_cost", "gauge", "Expected total cost at the end of the run in the currency.", more=("currency",)
)
FORECAST_COST_BOUND: Final = _run(
    "forecast_cost_bound",
    "gauge",
    "Bounds between which the total cost should be four times of five, in the currency.",
    more=("bound", "currency"),
)
STAGE_FORECAST_COST: Final = _run(
    "stage_forecast_cost",
    "gauge",
    "Expected cost of a stage, without failures and idle nodes, in the currency.",
    more=("stage", "currency"),
)
RUN_BUDGET: Final = _run(
    "run_budget", "gauge", "Most money that the run may spend, in the currency.", more=("currency",)
)
BUDGET_RATIO: Final = _run("budget_ratio", "gauge", "Spent share of the tighter budget limit.")
GOODPUT_RATIO: Final = _run("goodput_ratio", "gauge", "Productive share of the GPU time held so far.")
RECOVERY_SECONDS: Final = _run(
    "recovery_seconds",
    "gauge",
    "Time from the last fault of a cause to the first step after it in seconds.",
    "seconds",
    ("cause",),
)
RUN_MFU_RATIO: Final = _run("run_mfu_ratio", "gauge", "Model FLOPs utilisation of the run, last 20 steps.")
RUN_SAMPLES_PER_SECOND: Final = _run("run_samples_per_second", "gauge", "Samples per second of the run, last 20 steps.")
RUN_RECONCILED: Final = _run(
    "run_reconciled",
    "gauge",
    "0 after three failed passes over the run in a row, else 1; its limits are held.",
)
RUN_UNREADABLE: Final = _run(
    "run_unreadable_values", "gauge", "Values in status, ledger, labels and annotations that nobody can read."
)
CURATION_DROPPED: Final = _run(
    "curation_dropped_total",
    "counter",
    "Raw videos and clips that curation dropped, by reason.",
    more=("stage", "reason"),
)
CURATION_CLIPS: Final = _run("curation_clips", "gauge", "Clips that curation kept.", more=("stage",))
EVALUATION: Final = _run(
    "evaluation",
    "gauge",
    "What an evaluate stage measured, by measure: psnr, first_frame_psnr, clip_psnr (dB), ssim, lpips, flicker, "
    "motion, sharpness, validation_loss, `loss CLASS`, `loss at TIME`, `vbench DIMENSION`.",
    more=("stage", "measure"),
)

# Operator: the operator itself.
RECONCILE_SECONDS: Final = _operator(
    "reconcile_duration_seconds",
    "histogram",
    "Time of one observe-plan-apply pass in seconds.",
    "seconds",
    buckets=RECONCILE_SECONDS_BUCKETS,
)
PASSES_WAITING: Final = _operator("passes_waiting", "gauge", "Runs whose next pass waits for its turn.")
RECONCILE_ERRORS: Final = _operator(
    "reconcile_errors_total", "counter", "Passes that ended with an error, by its class.", labels=("error",)
)
API_CONFLICTS: Final = _operator(
    "api_conflicts_total", "counter", "Writes that were refused because the object had changed."
)
EVENTS: Final = _operator("events_total", "counter", "Events that were emitted, by reason.", labels=("reason",))
API_REQUESTS: Final = _operator(
    "api_requests_total",
    "counter",
    "Requests to the API server by verb, kind and HTTP status (0: no answer).",
    labels=("verb", "kind", "code"),
)
WATCH_RESTARTS: Final = _operator(
    "watch_restarts_total", "counter", "Watches that broke or expired and were taken up again.", labels=("kind",)
)
WATCH_SILENT_SECONDS: Final = _operator(
    "watch_silent_seconds",
    "gauge",
    "Time since the API server last gave a sign on a watch of that kind, of its most silent one if there are several.",
    labels=("kind",),
)
LEADER: Final = _operator("leader", "gauge", "1 while this replica holds the Lease and writes.")
NODES_UNTRUSTED: Final = _operator(
    "nodes_untrusted", "gauge", "1 while lost nodes are not believed, because too many are lost at once."
)
RUN_DEFAULTS_UNREADABLE: Final = _operator(
    "run_defaults_unreadable",
    "gauge",
    "1 while the cluster's defaults for runs cannot be read; the last readable ones stay.",
)
RUN_DEFAULTS_REFUSED: Final = _operator(
    "run_defaults_refused_total", "counter", "Versions of the cluster's defaults for runs that could not be read."
)
AGENT_ANSWERS_REFUSED: Final = _operator(
    "agent_answers_refused_total",
    "counter",
    "Answers of agents that count as silence: not signed with the run's key, or not readable.",
    labels=("reason",),
)
TIME_UNTRUSTED: Final = _operator(
    "time_untrusted",
    "gauge",
    "1 while the API server's clock jumped or was not confirmed yet, so that no deadline or budget ends a run.",
)
WEBHOOK_REVIEWS: Final = _operator(
    "webhook_reviews_total", "counter", "Admission reviews that this replica answered.", labels=("outcome",)
)
WEBHOOK_REFUSED: Final = _operator(
    "webhook_refused_total",
    "counter",
    "Connections and requests that the webhook ended unread: too many connections (crowded) or reviews (busy), a TLS "
    "handshake that failed, no HTTP or a body that breaks off (malformed), a body that is too large or too slow, a "
    "client certificate of another name (stranger).",
    labels=("reason",),
)
WEBHOOK_JUDGES_ENDED: Final = _operator(
    "webhook_judges_ended_total",
    "counter",
    "Processes that judged a review and ended, or were killed because they took too long.",
)

# Operator: budgets of teams.
TRAINING_BUDGET_AMOUNT: Final = _operator(
    "training_budget_amount",
    "gauge",
    "Most that a TrainingBudget lets its runs spend in a calendar month in the currency.",
    labels=("budget", "currency"),
)
TRAINING_BUDGET_SPENT: Final = _operator(
    "training_budget_spent",
    "gauge",
    "Spent by the runs of a TrainingBudget in this calendar month, deleted ones too, in the currency.",
    labels=("budget", "currency"),
)
TRAINING_BUDGET_EXPECTED: Final = _operator(
    "training_budget_expected",
    "gauge",
    "What they will have spent at its end if their nodes go on so, in the currency.",
    labels=("budget", "currency"),
)
TRAINING_BUDGET_ACTION: Final = _operator(
    "training_budget_action", "gauge", "1 while a rule with that action holds.", labels=("budget", "action")
)
TRAINING_BUDGET_JUDGED: Final = _operator(
    "training_budget_judged",
    "gauge",
    "1 while what a TrainingBudget's runs spend is looked at, 0 while its condition WithinBudget says why not.",
    labels=("budget",),
)

# Operator: copies of bills, where the chart's value bills names a place for them.
BILLS_WAITING: Final = _operator(
    "bills_waiting", "gauge", "Kept bills that are not yet in the object store as they are kept."
)
BILL_COPY_FAILURES: Final = _operator(
    "bill_copy_failures_total", "counter", "Failed attempts to bring a bill to the object store."
)

# Operator: what is reserved in the cluster.
RESERVED_GPUS: Final = _operator(
    "reserved_gpus",
    "gauge",
    "GPUs of a commitment of the price list, or on other reserved nodes (none): committed, present, held by runs.",
    labels=("commitment", "state"),
)
RESERVED_IDLE_COST: Final = _operator(
    "reserved_idle_cost_per_hour",
    "gauge",
    "What an hour of those costs that are paid and held by no run, in the currency. Others' pods may use them.",
    labels=("commitment", "currency"),
)

CATALOGUE: Final[dict[str, Metric]] = {
    metric.name: metric for metric in list(globals().values()) if isinstance(metric, Metric)
}
"""Every series by its full name, in the order of this file."""


def emitted_by(emitter: Emitter) -> list[Metric]:
    """The series that an agent or the operator exposes."""
    return [metric for metric in CATALOGUE.values() if metric.emitter == emitter]
