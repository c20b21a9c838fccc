"""`status` of a VideoTrainingRun: what the operator tells and what it needs to go on after a restart.

Everything here is written by the planner in one write per pass. Money is integer micros and decimal strings.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from typing import Literal

from pydantic import Field

from videotrain_api.money import MICROS, round_half_up
from videotrain_api.records import CurationCounts, GenerationProgress, Measures
from videotrain_api.resource.name_ranges import NameRanges
from videotrain_api.resource.run_defaults import HeldDefaults
from videotrain_api.schema import ApiModel


class ConditionStatus(ApiModel):
    """One condition, as Kubernetes has them; docs/reference/reasons.md lists all that can be told."""

    type: str
    """See vocabulary.Condition."""
    status: str
    """True, False or Unknown."""
    reason: str
    """CamelCase word."""
    message: str = ""
    """For people; at most 1,000 characters."""
    observed_generation: int | None = None
    """metadata.generation that it was computed from."""
    last_transition_time: datetime
    """When status last changed."""


class GenerationStatus(ApiModel):
    """One generation: a fixed set of members between two changes of the world."""

    number: int
    """1 for the first; rises with every change of the world and is never reused."""
    stage: str
    """Stage that it works on."""
    reason: str
    """GenerationReason for which it was started."""
    message: str = ""
    """For people: which node, pod or edit."""
    members: NameRanges
    """Pod names by node rank, such as `demo-w[0-3,7]`."""
    world_size: int
    """Worker processes."""
    gpus: int
    """GPUs held by its members."""
    created_at: datetime
    """When its roster was published."""
    ended_at: datetime | None = None
    """When the next roster was published, or its members were released."""
    end_cause: str | None = None
    """Why it ended: completed, drained, application, infrastructure, preemption or hang."""
    end_reason: str | None = None
    """GenerationReason of the next one, or Suspended or Completed."""
    end_message: str = ""
    """For people: what was seen when it was ended."""
    culprit: str | None = None
    """Of one that hung: the ranks that stood in no collective while others waited for them, with pod and node; empty if
    nobody can tell. `progress.stacks` has what they did."""
    lost_from_step: int | None = None
    """Steps after this one were lost, since the next generation resumed here; None while it is not known."""
    progress: GenerationProgress | None = None
    """Latest facts from the workers (the most advanced member's)."""


class StageStatus(ApiModel):
    """How far one stage is."""

    name: str
    """As in spec.stages."""
    task: str
    """As in spec.stages."""
    state: str
    """Pending, Running, Succeeded or Failed."""
    config_hash: str
    """Hash of its frozen configuration."""
    step: int = 0
    """Last finished step that is in a complete checkpoint or in the running generation."""
    saved_step: int = 0
    """Step of the newest complete checkpoint."""
    total_steps: int | None = None
    """Steps that it will have; unset while that is not known, as for a stage without optimizer before it runs."""
    tokens_per_step: float | None = None
    """Image and text tokens of a step, mean of the steps of the generations that told; unset before the first."""
    frames_per_step: float | None = None
    """The same in frames of video."""
    curation: CurationCounts | None = None
    """What a curate stage kept and dropped, once its set was put together."""
    evaluation: Measures | None = None
    """What an evaluate stage measured."""
    started_at: datetime | None = None
    """When its first generation was started."""
    finished_at: datetime | None = None
    """When it succeeded or failed."""
    output: str | None = None
    """URI of what it made, once it succeeded: final weights, the index of the videos, or the curated or encoded set."""


class RestartCounts(ApiModel):
    """Restarts so far, by cause."""

    application: int = 0
    """Faults of the program."""
    infrastructure: int = 0
    """Lost nodes, failed GPUs, storage outages."""
    preemption: int = 0
    """Reclaimed or drained nodes."""
    hang: int = 0
    """Hangs: step counters that stood still."""


class StagePlan(ApiModel):
    """What a stage was to cost, and why it cost something else."""

    total: str
    """By its model before the run began, at the most nodes that it may use, decimal string: steps, a start, checkpoints
    and failures as `videotrain plan` has them."""
    seconds: float
    """How long it was to take once its nodes are there."""
    node_seconds_per_step: float
    """Time of whole nodes that a step was to take."""
    forecast: str | None = None
    """What it was expected to cost when it began, or at its first measured steps, decimal string."""
    real_node_seconds_per_step: float | None = None
    """What a step took that was kept; unset before the first."""
    difference_micros: dict[str, int] = Field(default_factory=dict)
    """Once it is over: totalMicros less the plan, by why; the parts sum to it exactly. price, steps (fewer were made),
    rate (a step took longer), start, checkpoint, data, idle, failures."""


class StageCost(ApiModel):
    """What one stage cost: its pods from when they got their nodes, each at its own price."""

    name: str
    """As in spec.stages."""
    total_micros: int
    """Spent so far, millionths of the currency unit."""
    total: str
    """The same as a decimal string, for people."""
    held_gpu_microseconds: int
    """GPU time held so far; 0 on nodes without GPUs."""
    held_node_microseconds: int
    """Time of whole nodes."""
    micros_by_cause: dict[str, int] = Field(default_factory=dict)
    """totalMicros by what was productive, and by why the rest bought no progress; see wasteMicrosByCause."""
    plan: StagePlan | None = None
    """What it was to cost; unset if nobody could count its work before it ran."""
    per_thousand_steps: str | None = None
    """Cost of 1,000 steps that are done and kept, decimal string; everything that the stage cost is in it."""
    per_thousand_video_seconds: str | None = None
    """The same of 1,000 seconds of video that were trained on, at 24 frames per second; frames per step are those of
    the generations in this status. Unset before the first step and for stages without frames."""
    per_billion_tokens: str | None = None
    """The same of a billion image and text tokens."""


class GenerationCost(ApiModel):
    """What one generation cost; see `generations` for what ended it."""

    number: int
    """As in status.generations."""
    total_micros: int
    """From its roster to the next one, millionths of the currency unit, whatever the pods did."""
    total: str
    """The same as a decimal string, for people."""
    wasted_micros: int
    """What its end cost, here and in the generation after it: steps that were lost, the way out, the next start."""
    wasted: str
    """The same as a decimal string, for people."""


class MonthCost(ApiModel):
    """What a run cost in one calendar month, UTC."""

    month: str
    """Such as 2026-11."""
    total_micros: int
    """Spent in it, millionths of the currency unit."""
    total: str
    """The same as a decimal string, for people."""


class ExpectedStage(ApiModel):
    """What one stage is expected to cost."""

    name: str
    """As in spec.stages."""
    total: str | None = None
    """Decimal string; unset if nothing tells it yet, so that the forecast leaves the stage out."""
    source: Literal["spent", "measured", "modelled", "unknown"]
    """spent: it is over. measured: by its own steps. modelled: by its FLOPs and by stages that were measured."""


class Correction(ApiModel):
    """Amounts that were counted under one name first and turned out to belong under another; they only rise."""

    out: dict[str, int]
    """What left, by name."""
    into: dict[str, int]
    """What came, by name. What left and came nowhere was never held."""


class Corrections(ApiModel):
    """What a bill took back, such as steps that were productive until a fault lost them; unset where nothing was."""

    gpu_microseconds_by_bucket: Correction | None = None
    """Of the field of that name beside it, as are the others."""
    micros_by_bucket: Correction | None = None
    """By bucket."""
    stages: Correction | None = None
    """Of totalMicros, by stage."""
    waste_micros_by_cause: Correction | None = None
    """By cause."""


class CostStatus(ApiModel):
    """The bill. Buckets are exclusive and sum to heldGpuMicroseconds and totalMicros exactly; so do stages."""

    currency: str
    """As in spec.pool."""
    total_micros: int = 0
    """Spent so far, millionths of the currency unit."""
    total: str = "0"
    """The same as a decimal string, for people."""
    counted_until: datetime | None = None
    """Up to when nodes that were held are in it; nothing was held between then and observedAt, if that is later."""
    held_gpu_microseconds: int = 0
    """GPU time held so far."""
    gpu_microseconds_by_bucket: dict[str, int] = Field(default_factory=dict)
    """heldGpuMicroseconds by what the time went into; the buckets sum to it."""
    micros_by_bucket: dict[str, int] = Field(default_factory=dict)
    """totalMicros by what the money went into; the buckets sum to it."""
    stages: list[StageCost] = Field(default_factory=list)
    """totalMicros by stage, in their order. A pod that never worked for a stage and was made when that was complete
    counts to the next."""
    generations: list[GenerationCost] = Field(default_factory=list)
    """Of the generations that the status lists."""
    waste_micros_by_cause: dict[str, int] = Field(default_factory=dict)
    """totalMicros without the productive ones by why they bought no progress: start, idle, data, checkpoint, or what
    ended generations (application, infrastructure, preemption, hang, drained, completed)."""
    months: list[MonthCost] = Field(default_factory=list)
    """totalMicros by calendar month, oldest first; of the newest twelve."""
    rate_per_hour: str = "0"
    """What the nodes held now cost in an hour, decimal string."""
    forecast: str | None = None
    """Expected total at the end of the run, decimal string: what is spent, and what is left of each stage by measured
    steps, or by its FLOPs and those of stages that were measured. Unset until steps were."""
    forecast_low: str | None = None
    """The total should be between this and forecastHigh four times of five, decimal string."""
    forecast_high: str | None = None
    """See forecastLow."""
    expected_stages: list[ExpectedStage] = Field(default_factory=list)
    """What forecast takes each stage for, without failures and idle nodes; empty once the run is over."""
    budget_percent: float | None = None
    """Share of the tighter limit that is spent."""
    goodput_percent: float | None = None
    """Productive share of the held GPU time."""
    estimated: bool = False
    """Some pod vanished without a finish time; its end was bounded by the last observation."""
    corrections: Corrections | None = None
    """What the amounts above took back. Counters of a monitor show what was counted first, so that they never fall."""


def amounts_of(cost: CostStatus) -> dict[str, dict[str, int]]:
    """What each field of Corrections is about."""
    return {
        "gpu_microseconds_by_bucket": cost.gpu_microseconds_by_bucket,
        "micros_by_bucket": cost.micros_by_bucket,
        "stages": {stage.name: stage.total_micros for stage in cost.stages},
        "waste_micros_by_cause": cost.waste_micros_by_cause,
    }


class SuspectNode(ApiModel):
    """A node on which something failed; new pods avoid it for a while."""

    name: str
    """Name of the node."""
    reason: str
    """What happened there."""
    since: datetime
    """When it happened."""


class StorageDenialStatus(ApiModel):
    """The object store denied access, and nothing was saved since."""

    stage: str
    """Stage that was worked on."""
    saved_step: int
    """Its newest checkpoint then; a newer one ends the denial."""
    pauses: int = 0
    """How often the run has waited without nodes; each pause is twice as long as the one before, an hour at most."""
    message: str
    """For people: what the worker told, with the answer of the object store."""
    until: datetime | None = None
    """When the run, suspended for it, tries again; unset while it tries."""


class OutageStatus(ApiModel):
    """What the run recovers from: a world ended before its time, and no step was finished since."""

    generation: int
    """The generation that ended first."""
    reason: str
    """GenerationReason of its end."""
    message: str
    """For people: what was seen."""
    since: datetime
    """When it ended."""
    wasted_gpu_microseconds: int
    """GPU time in the buckets lost, stalled, draining and restarting when it began; the difference is what it cost."""
    wasted_micros: int
    """The same in money."""


class TraceStatus(ApiModel):
    """The trace of one rank."""

    rank: int
    """Of the process in the world."""
    first_step: int
    """First step that was traced."""
    last_step: int
    """Last one."""
    uri: str
    """Where it is in the object store."""
    error: str = ""
    """Why it is not there; empty if it is."""


class ProfileStatus(ApiModel):
    """The newest request for traces of training steps, made by an annotation."""

    request: str
    """The annotation's value; empty once the annotation was removed, after which the same value is a new request."""
    number: int
    """Rises with every request."""
    state: str
    """See vocabulary.ProfileState: Requested, Stored, Failed or Refused."""
    steps: int | None = None
    """Steps to trace; unset if it was refused."""
    ranks: list[int] = Field(default_factory=list)
    """Ranks that are asked."""
    message: str = ""
    """For people."""
    traces: list[TraceStatus] = Field(default_factory=list)
    """What is there so far, by rank."""


class PodGroupStatus(ApiModel):
    """Pods that the queue admits together, all or none."""

    name: str
    """Name of the group; never used again once its pods are gone."""
    pods: int
    """Total count that the queue waits for."""
    pool: str | None = None
    """The first stage with the pool of its pods; unset for spec.pool."""
    seen: bool = False
    """Pods of it were seen; once none is left, it is over."""


class NodesStatus(ApiModel):
    """How many nodes there are, and may be."""

    current: int = 0
    """Members of the running generation."""
    ready: int = 0
    """Pods that could be members now."""
    min: int = 0
    """Fewest that the current stage goes on with."""
    max: int = 0
    """Most that the current stage asks for."""


class ThroughputStatus(ApiModel):
    """Over the last 20 steps, whole world."""

    samples_per_second: float | None = None
    """Clips and pictures per second."""
    tokens_per_second: float | None = None
    """Image and text tokens per second."""
    mfu_percent: float | None = None
    """Model FLOPs per second divided by the GPUs' dense bf16 peak; recomputation not counted. None if that peak is not
    known; mfuUnknown says why."""
    hfu_percent: float | None = None
    """The same with what is computed again in the backward pass."""
    useful_mfu_percent: float | None = None
    """The same as mfuPercent as if no text were padded."""
    mfu_unknown: str | None = None
    """Kinds of GPU whose peak is not known, so that there is no MFU."""


class ColumnsStatus(ApiModel):
    """Short texts for `kubectl get`, which prints numbers with all their digits; nothing else reads them."""

    step: str = ""
    """Last step of the current stage and how many it has, such as `120/400`."""
    nodes: str = ""
    """Nodes of the running generation and most wanted, such as `7/8`."""
    last_step: datetime | None = None
    """When the last step was finished, as far as the stored status knows; kubectl shows how long ago that is. Unset
    before the first one."""
    mfu: str = ""
    """Model FLOPs utilisation, such as `41%`; `unknown GPU` if the GPUs' peak is not known."""
    cost: str = ""
    """Spent so far, such as `$12.34` or `12.34 EUR`."""


class RecentEvent(ApiModel):
    """An event that was told of the run; kept until it is sure to be recorded, or given up."""

    at: datetime
    """When it was told."""
    type: str
    """Normal or Warning."""
    reason: str
    """Reason of the event."""
    message: str
    """For people."""


class RunStatus(ApiModel):
    """Observed state of a run."""

    observed_generation: int = 0
    """metadata.generation that the status was computed from."""
    phase: str = "Pending"
    """vocabulary.Phase; derived, for people."""
    conditions: list[ConditionStatus] = Field(default_factory=list)
    """What is true of the run, by type; `kubectl wait --for=condition=Complete` reads them."""
    stage: str | None = None
    """Name of the current stage."""
    step: int = 0
    """Last finished step of the current stage."""
    progress: str = ""
    """Such as `train-256px 120/400`, for people."""
    generation: int = 0
    """Newest generation number; never reused."""
    columns: ColumnsStatus = ColumnsStatus()
    """What `kubectl get` shows."""
    nodes: NodesStatus = NodesStatus()
    """How many nodes there are, and may be."""
    stages: list[StageStatus] = Field(default_factory=list)
    """Every stage of the run, in its order."""
    generations: list[GenerationStatus] = Field(default_factory=list)
    """The newest 16; earlier ones are folded into the ledger."""
    restarts: RestartCounts = RestartCounts()
    """Restarts of the whole run."""
    restarts_in_stage: RestartCounts = RestartCounts()
    """Restarts of the current stage; spec.failurePolicy.limits bounds them."""
    same_step_deaths: int = 0
    """Generations in a row that died at the same step."""
    last_death_step: int | None = None
    """The step at which the last of them died."""
    throughput: ThroughputStatus = ThroughputStatus()
    """How fast the running generation is."""
    cost: CostStatus | None = None
    """The bill; unset until pods are held."""
    start_time: datetime | None = None
    """When the first pod was created."""
    completion_time: datetime | None = None
    """When the run succeeded or failed."""
    active_microseconds: int = 0
    """Wall time with pods held, closed intervals only."""
    active_since: datetime | None = None
    """Since when pods are held without a break; None while none is held."""
    observed_at: datetime | None = None
    """When held pods were last seen; bounds the end of a pod that vanishes."""
    unconfirmed: dict[str, datetime] | None = None
    """By what would be decided: when a pass first came to it. Another pass must come to it later before it is done."""
    warned_percents: list[int] = Field(default_factory=list)
    """Budget warnings that were already emitted."""
    budget_stop: str | None = None
    """Limits at which the budget's action was taken; other limits in spec.budget lift it."""
    config_map: str | None = None
    """Name of the config map with the frozen stage configurations."""
    ledger: str | None = None
    """Name of the config map with the ledger, once it was written."""
    outage: OutageStatus | None = None
    """What is being recovered from; unset while steps go on."""
    storage_denied: StorageDenialStatus | None = None
    """Access that the object store denied; unset once something was saved after it."""
    profile: ProfileStatus | None = None
    """The newest request for traces; unset if there was none."""
    pod_groups: list[PodGroupStatus] = Field(default_factory=list)
    """Groups of pods in the queue; empty without spec.queue."""
    pod_groups_made: int = 0
    """How many groups there were; numbers their names."""
    failed_pods: list[str] = Field(default_factory=list)
    """UIDs of failed pods that were counted and are not gone yet."""
    suspect_nodes: list[SuspectNode] = Field(default_factory=list)
    """Nodes that new pods avoid."""
    defaults: HeldDefaults | None = None
    """The cluster's defaults that the run took when it last held no pods, and keeps while it holds some."""
    recent_events: list[RecentEvent] = Field(default_factory=list)
    """The newest events, which an operator that takes over records if the one before did not come to it."""


_CENTS_UP_TO = 1000
"""Larger amounts are shown without cents."""


def columns_of(status: RunStatus) -> ColumnsStatus:
    """The short texts of a status, for eighty columns in all."""
    stage = next((s for s in status.stages if s.name == status.stage), None)
    told = [each.progress.last_step_at for each in status.generations if each.progress is not None]
    total = f"/{stage.total_steps}" if stage and stage.total_steps else ""
    return ColumnsStatus(
        step=f"{status.step}{total}" if stage else "",
        nodes=f"{status.nodes.current}/{status.nodes.max}",
        last_step=max((at for at in told if at is not None), default=None),
        mfu="unknown GPU" if status.throughput.mfu_unknown else _percent(status.throughput.mfu_percent),
        cost=_amount(status.cost) if status.cost else "",
    )


def _percent(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}%" if value >= 10 else f"{value:.1f}%" if value >= 0.1 else "<0.1%"


def _amount(cost: CostStatus) -> str:
    whole, cents = divmod(round_half_up(Fraction(cost.total_micros, MICROS // 100)), 100)
    text = f"{whole}.{cents:02d}"
    if whole >= _CENTS_UP_TO:
        text = str(round_half_up(Fraction(cost.total_micros, MICROS)))
    return f"${text}" if cost.currency == "USD" else f"{text} {cost.currency}"
