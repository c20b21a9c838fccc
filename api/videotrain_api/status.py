"""`status` of a VideoTrainingRun: what the operator tells and what it needs to go on after a restart.

Everything here is written by the planner in one write per pass. Money is integer micros and decimal strings.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from videotrain_api.records import CurationCounts, GenerationProgress
from videotrain_api.schema import ApiModel


class ConditionStatus(ApiModel):
    """A Kubernetes condition."""

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
    stage: str
    reason: str
    """GenerationReason for which it was started."""
    message: str = ""
    """For people: which node, pod or edit."""
    members: list[str]
    """Pod names by node rank."""
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
    """For people: the evidence on which it was ended."""
    lost_from_step: int | None = None
    """Steps after this one were lost, since the next generation resumed here; None while it is not known."""
    progress: GenerationProgress | None = None
    """Latest facts from the workers (the most advanced member's)."""


class StageStatus(ApiModel):
    """One stage."""

    name: str
    task: str
    state: str
    """Pending, Running, Succeeded or Failed."""
    config_hash: str
    """Hash of its frozen configuration."""
    step: int = 0
    """Last finished step that is in a complete checkpoint or in the running generation."""
    saved_step: int = 0
    """Step of the newest complete checkpoint."""
    total_steps: int | None = None
    curation: CurationCounts | None = None
    """What a curate stage kept and dropped, once its set was put together."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


class RestartCounts(ApiModel):
    """Restarts so far, by cause."""

    application: int = 0
    infrastructure: int = 0
    preemption: int = 0
    hang: int = 0


class CostStatus(ApiModel):
    """The bill. Buckets are exclusive and sum to heldGpuMicroseconds and totalMicros exactly."""

    currency: str
    total_micros: int = 0
    """Spent so far, millionths of the currency unit."""
    total: str = "0"
    """The same as a decimal string, for people."""
    held_gpu_microseconds: int = 0
    """GPU time held so far."""
    gpu_microseconds_by_bucket: dict[str, int] = Field(default_factory=dict)
    micros_by_bucket: dict[str, int] = Field(default_factory=dict)
    rate_per_hour: str = "0"
    """What the GPUs held now cost in an hour, decimal string."""
    forecast: str | None = None
    """Expected total at the end of the run, decimal string (modelled from the measured step time)."""
    budget_percent: float | None = None
    """Share of the tighter limit that is spent."""
    goodput_percent: float | None = None
    """Productive share of the held GPU time."""
    estimated: bool = False
    """Some pod vanished without a finish time; its end was bounded by the last observation."""


class SuspectNode(ApiModel):
    """A node on which something failed; new pods avoid it for a while."""

    name: str
    reason: str
    since: datetime


class NodesStatus(ApiModel):
    """Numbers for printer columns."""

    current: int = 0
    """Members of the running generation."""
    ready: int = 0
    """Pods that could be members now."""
    min: int = 0
    max: int = 0


class ThroughputStatus(ApiModel):
    """Over the last 20 steps, whole world."""

    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    mfu_percent: float | None = None
    """Model FLOPs per second divided by the GPUs' dense bf16 peak; recomputation not counted."""


class RunStatus(ApiModel):
    """Observed state of a run."""

    observed_generation: int = 0
    """metadata.generation that the status was computed from."""
    phase: str = "Pending"
    """vocabulary.Phase; derived, for people."""
    conditions: list[ConditionStatus] = Field(default_factory=list)
    stage: str | None = None
    """Name of the current stage."""
    step: int = 0
    """Last finished step of the current stage."""
    progress: str = ""
    """Such as `train-256px 120/400`, for the printer column."""
    generation: int = 0
    """Newest generation number; never reused."""
    nodes: NodesStatus = NodesStatus()
    stages: list[StageStatus] = Field(default_factory=list)
    generations: list[GenerationStatus] = Field(default_factory=list)
    """The newest 16; earlier ones are folded into the ledger."""
    restarts: RestartCounts = RestartCounts()
    restarts_in_stage: RestartCounts = RestartCounts()
    same_step_deaths: int = 0
    """Generations in a row that died at the same step."""
    last_death_step: int | None = None
    throughput: ThroughputStatus = ThroughputStatus()
    cost: CostStatus | None = None
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
    warned_percents: list[int] = Field(default_factory=list)
    """Budget warnings that were already emitted."""
    budget_stop: str | None = None
    """Limits at which the budget's action was taken; other limits in spec.budget lift it."""
    config_map: str | None = None
    """Name of the config map with the frozen stage configurations."""
    failed_pods: list[str] = Field(default_factory=list)
    """UIDs of failed pods that were counted and are not gone yet."""
    suspect_nodes: list[SuspectNode] = Field(default_factory=list)
    """Nodes that new pods avoid."""
