"""What crosses the pod boundary: the roster on its way in, records and progress on their way out.

Times are UTC datetimes; durations are integer microseconds, so that sums are exact.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from videotrain_api.schema import ApiModel


class RosterMember(ApiModel):
    """One worker pod of a generation."""

    pod: str
    """Pod name."""
    address: str
    """Pod IP."""
    uid: str
    """UID of the pod: one that has the name later is no member."""


class ProfileRequest(ApiModel):
    """Ranks that are to trace some of their steps."""

    number: int = Field(ge=1)
    """Rises with every request of the run."""
    steps: int = Field(ge=1, le=100)
    """Steps to trace, from the next one on."""
    ranks: list[int] = Field(max_length=64)
    """Ranks that are to do so; none once it was done."""


class Roster(ApiModel):
    """Who is in the world. Members are in order of node rank; the first one leads."""

    run_uid: str
    """UID of the run."""
    generation: int = Field(ge=1)
    """Strictly increasing over the life of the run."""
    action: Literal["run", "stop", "leave"]
    """`run`: be a member of this generation. `stop`: this generation is over: stop the workers and stay idle until the
    next one (members is empty). `leave`: the run is over: stop the workers and end, so that the pod holds its node no
    more and its log can still be read."""
    stage: str
    """Stage name; its configuration is `config`, or else DIR_CONFIG/<stage>.json."""
    config_hash: str
    """Hash of that configuration; the agent refuses another."""
    config: str | None = None
    """The stage's configuration, JSON, where some members have another mounted: the stages were edited since."""
    reason: str
    """GenerationReason for which it was made."""
    members: list[RosterMember]
    """All member pods by rank. A pod that is not listed drains and stays idle."""
    port: int
    """Rendezvous port on the first member's address."""
    processes_per_node: int = Field(ge=1)
    """Worker processes of each pod."""
    restore: bool = True
    """Start from the newest complete checkpoint of the stage, if there is one."""
    saved_step: int = Field(default=0, ge=0)
    """Newest step of the stage that is known to be saved; 0 for none. Workers that find less stored refuse to begin."""
    drain: bool = True
    """Workers of the generation before may finish their step and save first; false after a fault."""
    profile: ProfileRequest | None = None
    """The newest request for traces, if there was one."""
    created_at: datetime | None = None
    """When it was published."""

    def order(self) -> tuple[int, int, int]:
        """Compares rosters of one run; an agent obeys the highest that it saw: run(1) < stop(1) < leave(1) < run(2).

        One that only asks for a trace lies between the first and the second; its world stays as it is.
        """
        return self.generation, ("run", "stop", "leave").index(self.action), self.profile.number if self.profile else 0

    def rank(self, pod_uid: str) -> int | None:
        """Node rank of a pod; None if it is no member, and then drains and stays idle."""
        return next((rank for rank, member in enumerate(self.members) if member.uid == pod_uid), None)


class RosterNotice(ApiModel):
    """A roster on its way to many agents: body of POST /roster, which the recipient passes on to some of them."""

    roster: Roster
    to: list[str] = Field(default_factory=list)
    """Pod IPs to which the recipient sends it on, in parts."""
    seconds: float = Field(ge=0, le=60)
    """How long the recipient may wait for those it sends it to."""


class RosterReceipt(ApiModel):
    """Answer to a RosterNotice."""

    told: list[str]
    """Pod IPs of the agents that took it, the recipient's among them."""


class Record(ApiModel):
    """What every record says of its origin."""

    generation: int
    """Generation in which it was written."""
    stage: str
    """Stage that it is about."""
    config_hash: str = ""
    """Hash of the stage's configuration; empty where a process ended before it had read one."""


class GradientCheck(ApiModel):
    """What the gradient check of a start found: a small model through the stage's engine, beside plain sums."""

    engine: str
    """Engine, offload and precision, such as `deepspeed zeroStage 2, bf16`."""
    cases: int
    """Combinations of contextParallel and recompute that were tried."""
    worst_error: float
    """Largest difference of a part of the model, relative to the size of its gradient."""
    bound: float
    """Largest that is taken for rounding; a start with more ends as GRADIENTS."""
    duration_us: int = Field(ge=0)
    """Time that it took, microseconds."""


class StartedRecord(Record):
    """A worker is ready to train."""

    kind: Literal["started"] = "started"
    at: datetime
    world_size: int
    """Worker processes of the generation."""
    resumed_step: int
    """Step of the checkpoint it started from; 0 for none."""
    total_steps: int
    """Optimizer steps, or work units of a stage that does not train."""
    skipped_checkpoints: list[str] = Field(default_factory=list)
    """Newer checkpoints that were refused, with why."""
    attention: str | None = None
    """Kernel that attention runs on, such as `cudnn`; None for a stage that has no transformer."""
    phases_us: dict[str, int] = Field(default_factory=dict)
    """What the start went into, from the roster on: microseconds by phase, in their order."""
    gradient_check: GradientCheck | None = None
    """Of a stage that trains and is not complete."""


class StepRecord(Record):
    """One optimizer step (or work unit) is done."""

    kind: Literal["step"] = "step"
    step: int
    """1-based."""
    started_at: datetime
    finished_at: datetime
    data_stall_us: int = Field(ge=0)
    """Time in which the step waited for input, microseconds."""
    checkpoint_us: int = Field(ge=0)
    """Time in which the step waited for a checkpoint, microseconds."""
    samples: int
    """Samples of the whole world in this step."""
    tokens: int
    """Image and text tokens of the whole world in this step; 0 where there are none."""
    model_flops: float
    """Forward and backward FLOPs of the whole world by formula; recomputation not counted."""
    loss: float | None = None
    """Mean loss over the step."""
    gradient_norm: float | None = None
    """Global norm before clipping."""
    learning_rate: float | None = None
    bucket: str | None = None
    """Name of the bucket, such as `256px/33f/16:9`."""
    hardware_flops: float | None = None
    """model_flops and what was computed again in the backward pass."""
    useful_flops: float | None = None
    """model_flops as they would be if no text were padded."""
    forward_us: int | None = Field(default=None, ge=0)
    """Time of the forward passes, mean of the ranks, microseconds; as are the next three. Of an encode stage that of
    autoencoder and text encoder."""
    backward_us: int | None = Field(default=None, ge=0)
    """Of the backward passes, with the communication that they hide or wait for."""
    communication_us: int | None = Field(default=None, ge=0)
    """Between the last backward pass and the update, and between the update and the end: communication that nothing
    hides, and the clipping of gradients."""
    optimizer_us: int | None = Field(default=None, ge=0)
    """Of the update of weights and their moving average."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """Most bytes that a GPU of the world held in this step; on the CPU, that a process held so far."""
    world_spread: float | None = None
    """(slowest - fastest) / mean compute time of the ranks in this step."""
    slowest_rank: int | None = Field(default=None, ge=0)
    """Rank that took longest to compute a micro-batch."""
    straggler_ratio: float | None = None
    """How much longer it took than the median of the ranks, such as 0.25 for a quarter."""
    sample_requests: int | None = Field(default=None, ge=0)
    """Requests for samples of the whole world since the step before; one a sample if all goes well."""
    second_requests: int | None = Field(default=None, ge=0)
    """Of those, made beside one that was late."""
    repeated_requests: int | None = Field(default=None, ge=0)
    """Of those, made because a sample was damaged or its shard missing."""
    slowest_sample_us: int | None = Field(default=None, ge=0)
    """99th percentile of the time that a sample takes to arrive, newest 256 of the slowest rank, microseconds."""
    cache_hits: int | None = Field(default=None, ge=0)
    """Samples of the whole world that a node's cache had, since the step before; 0 without a cache."""
    cache_misses: int | None = Field(default=None, ge=0)
    """Those that it did not have."""
    cache_bytes: int | None = Field(default=None, ge=0)
    """Of samples, in the fullest node's cache."""
    stored_bytes: int | None = Field(default=None, ge=0)
    """Bytes of samples that encoding has stored since the step before."""


class ValidationRecord(Record):
    """The loss on held-out samples after a step: always the same samples, times and noise, so losses compare."""

    kind: Literal["validation"] = "validation"
    step: int
    """Last step that the weights have seen."""
    at: datetime
    duration_us: int = Field(ge=0)
    """Time for which training stood still for it, microseconds."""
    samples: int
    loss: float
    """Mean over samples and times."""
    bucket_losses: dict[str, float]
    """The same by bucket, such as `256px/33f/16:9`."""
    times: list[float]
    """Times before the shift, in (0, 1); 1 is noise."""
    time_losses: list[float]
    """Mean over the samples at each time."""


Phase = Literal["list", "merge", "export", "captions", "samples"]


class SamplesRecord(Record):
    """Videos of fixed prompts were drawn after a step, and are stored."""

    kind: Literal["samples"] = "samples"
    step: int
    """Last step that the weights have seen; 0 before the first."""
    at: datetime
    duration_us: int = Field(ge=0)
    """Time for which training stood still for it, microseconds."""
    videos: int
    uri: str
    """Of their VideosIndex."""


class PhaseRecord(Record):
    """Work of a stage that is no step has got further, such as storing its result."""

    kind: Literal["phase"] = "phase"
    at: datetime
    phase: Phase
    """Finding units of work, putting together what they left, storing the final weights, telling captions, or drawing
    videos beside the steps."""
    done: int = Field(ge=0)
    """Objects or bytes of the whole world so far."""
    total: int = Field(ge=0)
    """Of how many; while units are found, the steps of all that were found."""


class CheckpointRecord(Record):
    """A checkpoint is complete: its commit manifest is in the object store."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    captured_at: datetime
    """When the step that it holds was finished."""
    committed_at: datetime
    uri: str
    bytes: int
    stall_us: int = Field(ge=0)
    """Time for which training stood still for it, microseconds."""


class ProfileRecord(Record):
    """A rank has traced some of its steps."""

    kind: Literal["profile"] = "profile"
    number: int
    """Of the request."""
    rank: int
    at: datetime
    first_step: int
    last_step: int
    uri: str
    """Where the trace is: JSON for Perfetto or chrome://tracing, gzip."""
    error: str = ""
    """Why it is not there; empty if it is."""


class CurationCounts(ApiModel):
    """What a curate stage kept and dropped."""

    clips: int
    """Clips kept."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Raw videos and clips that were dropped, by reason."""


class CurationRecord(Record):
    """A curated set was put together and its drop report is stored; told again by each generation that does so."""

    kind: Literal["curation"] = "curation"
    at: datetime
    counts: CurationCounts
    """Of the whole set, not only of this generation's share."""


class Measures(ApiModel):
    """What an evaluate stage measured: means over its clips and videos."""

    clips: int = Field(default=0, ge=0)
    """Clips that went through the autoencoder and back."""
    psnr: float | None = None
    """Of them against what they were, dB, mean over frames; 100 for frames without error."""
    ssim: float | None = None
    """Their structural similarity, at most 1."""
    lpips: float | None = None
    """Their distance in features of VGG16; 0 is none. Unset without its weights."""
    videos: int = Field(default=0, ge=0)
    """Drawn videos."""
    flicker: float | None = None
    """Grey levels by which a frame of them leaves the mean of its neighbours."""
    motion: float | None = None
    """Mean difference of their neighbouring frames, grey levels."""
    sharpness: float | None = None
    """Variance of their Laplacian."""
    first_frame_psnr: float | None = None
    """PSNR of the first frame of those that were given it, against what they were given, dB."""
    clip_psnr: float | None = None
    """PSNR of those that were drawn from clips against these, as training thins them out, dB."""
    validation_loss: float | None = None
    """Loss on the held-out samples of a train stage."""
    loss_by_bucket: dict[str, float] = Field(default_factory=dict)
    """The same of each size class."""
    loss_by_time: dict[str, float] = Field(default_factory=dict)
    """The same at each time before the shift; 0 is data, 1 noise."""
    vbench: dict[str, float] = Field(default_factory=dict)
    """VBench's score of each dimension, and where they are whole `quality`, `semantic` and `total`; 1 is best."""
    pairs: int = Field(default=0, ge=0)
    """Pairs on the page of preference."""

    def means(self) -> list[tuple[str, float]]:
        """Names and values of what was measured, without the counts; those of classes as `loss 64px/8f/1:1`."""
        counts, classes = {"clips", "videos", "pairs"}, {"loss_by_bucket", "loss_by_time", "vbench"}
        values = self.model_dump(exclude=counts | classes, exclude_none=True)
        values |= {f"loss {bucket}": loss for bucket, loss in self.loss_by_bucket.items()}
        values |= {f"loss at {time}": loss for time, loss in self.loss_by_time.items()}
        values |= {f"vbench {dimension}": score for dimension, score in self.vbench.items()}
        return [*values.items()]


class EvaluationRecord(Record):
    """An evaluate stage is done and its rows are stored; told again by each generation that gets there."""

    kind: Literal["evaluation"] = "evaluation"
    at: datetime
    measures: Measures


class WorkerExit(Record):
    """How a worker process ended, written by itself or, if it could not, by the agent."""

    kind: Literal["exit"] = "exit"
    """Tells records apart."""
    local_rank: int
    """Its number in the pod, from 0."""
    at: datetime
    """When it ended."""
    code: int
    """Exit code; 128 + n for signal n."""
    outcome: Literal["completed", "drained", "failed"]
    """The stage is done, it was asked to stop and saved, or neither."""
    step: int
    """Last finished step."""
    message: str = ""
    """For people: the exception, or what a drain did."""


Housekeeping = Literal["retention", "order", "latest", "copies", "records", "tracking", "append"]
"""Beside these the metric counts `failures`, which an agent stores and not a worker."""


class HousekeepingRecord(Record):
    """Something beside a checkpoint failed; the checkpoint itself is complete, and training goes on."""

    kind: Literal["housekeeping"] = "housekeeping"
    at: datetime
    task: Housekeeping
    """Deleting old checkpoints, the log of the order of samples, naming the latest checkpoint, copying the state in
    memory, storing these records, telling a tracker, or taking in a set that was appended."""
    message: str
    """For people: the object and what happened to it."""


TrainerRecord = Annotated[
    StartedRecord
    | StepRecord
    | ValidationRecord
    | SamplesRecord
    | PhaseRecord
    | CheckpointRecord
    | HousekeepingRecord
    | CurationRecord
    | EvaluationRecord
    | ProfileRecord
    | WorkerExit,
    Field(discriminator="kind"),
]
"""Anything that a worker tells."""
TRAINER_RECORD: TypeAdapter[TrainerRecord] = TypeAdapter(TrainerRecord)
"""Parses one line of records-<generation>-<local rank>.jsonl."""


class Straggler(ApiModel):
    """A rank that often was the slowest of the world."""

    rank: int
    """Of the process in the world."""
    steps: int
    """Steps of the generation in which it took longest to compute a micro-batch."""
    share: float
    """The same over all steps of the generation; in an even world every rank has one share of many."""
    ratio: float
    """How much longer than the median it took in these steps, mean, such as 0.25 for a quarter."""


class StoredProfile(ApiModel):
    """What one rank made of a request for a trace."""

    number: int
    """Of the request."""
    rank: int
    """Of the process in the world."""
    first_step: int
    """First step that was traced."""
    last_step: int
    """Last one."""
    uri: str
    """Where it is."""
    error: str = ""
    """Why it is not there; empty if it is."""


class SavedPoint(ApiModel):
    """A complete checkpoint, with the times that split a generation's work into kept and lost."""

    step: int
    """Last step that it holds."""
    captured_at: datetime
    """When that step was finished."""
    committed_at: datetime
    """When it was complete in the object store."""
    uri: str
    """Where it is."""
    data_stall_us: int
    """Data stall of the generation up to captured_at, microseconds."""
    checkpoint_us: int
    """Checkpoint stall of the generation up to captured_at, microseconds."""


class GenerationProgress(ApiModel):
    """Facts of one generation as its workers tell them. Times are None until they happened."""

    generation: int
    """Number of the generation."""
    stage: str
    """Stage that it works on."""
    state: Literal["starting", "running", "draining", "drained", "failed", "succeeded"]
    """Where its workers are."""
    world_size: int | None = None
    """Worker processes."""
    resumed_step: int | None = None
    """Step of the checkpoint it started from; 0 for none."""
    total_steps: int | None = None
    """Steps that the stage will have."""
    step: int = 0
    """Last finished step; resumed_step if none was finished in this generation."""
    launched_at: datetime
    """When the agent started the workers."""
    started_at: datetime | None = None
    """When the workers were ready to train."""
    load_us: int | None = Field(default=None, ge=0)
    """Of the time up to started_at: reading a checkpoint, copies in memory or weights, microseconds."""
    first_step_at: datetime | None = None
    """End of the first step."""
    last_step_at: datetime | None = None
    """End of the last step."""
    last_sign_at: datetime | None = None
    """When the workers last got further with something that is no step: a validation, or a PhaseRecord. Unset if a step
    ended later."""
    ended_at: datetime | None = None
    """When the last worker of this pod was gone."""
    data_stall_us: int = 0
    """Time in which steps waited for input, microseconds."""
    checkpoint_us: int = 0
    """Time in which steps waited for a checkpoint, microseconds."""
    tokens: int = 0
    """Image and text tokens of the whole world in all steps of this generation."""
    frames: int = 0
    """The same in frames of video."""
    saved: list[SavedPoint] = Field(default_factory=list)
    """Checkpoints completed in this generation, oldest first; the newest 8."""
    exit: WorkerExit | None = None
    """The first failure of this pod, or the last regular end."""
    stacks: str | None = None
    """Stacks of the workers, captured before a hung generation was killed."""
    attention: str | None = None
    """Kernel that attention runs on; None for a stage that has no transformer."""
    skipped_checkpoints: list[str] = Field(default_factory=list)
    """Checkpoints that were refused at start, with why."""
    gradient_check: GradientCheck | None = None
    """What the gradient check of the start found."""
    curation: CurationCounts | None = None
    """Of a curate stage, once its set was put together."""
    evaluation: Measures | None = None
    """Of an evaluate stage, once all was measured."""
    loss: float | None = None
    """Mean loss of the last step."""
    validation_loss: float | None = None
    """Newest loss on held-out samples."""
    samples_per_second: float | None = None
    """Clips and pictures per second over the last 20 steps, whole world."""
    tokens_per_second: float | None = None
    """Image and text tokens per second over the last 20 steps, whole world."""
    model_flops_per_second: float | None = None
    """Forward and backward FLOPs per second over the last 20 steps, whole world; recomputation not counted."""
    gpu_kinds: list[str] | None = None
    """Kinds of GPU in this pod, as their driver names them."""
    mfu: float | None = None
    """model_flops_per_second over the dense bf16 peak of the world's GPUs, such as 0.41; None if the peak
    of a kind of GPU is not known."""
    hfu: float | None = None
    """The same with what is computed again in the backward pass."""
    useful_mfu: float | None = None
    """The same as mfu as if no text were padded."""
    memory_bytes: int | None = None
    """Most bytes that a GPU of the world held in the last 20 steps; on the CPU, a process so far."""
    profiles: list[StoredProfile] = Field(default_factory=list)
    """Traces that were asked for, oldest first; the newest 16."""
    stragglers: list[Straggler] = Field(default_factory=list, max_length=8)
    """The ranks that were slowest most often, at most three; empty in a world of one."""

    def seconds_per_step(self, least: int) -> float | None:
        """Mean over the steps but the first, which compiles and warms up.

        Args:
            least: with fewer steps than these after the first, None.
        """
        if self.first_step_at is None or self.last_step_at is None:
            return None
        steps = self.step - (self.resumed_step or 0) - 1
        return (self.last_step_at - self.first_step_at).total_seconds() / steps if steps >= least else None


class AgentProgress(ApiModel):
    """Answer of an agent's /progress."""

    pod: str
    pod_uid: str
    at: datetime
    """The agent's clock when it answered."""
    ready: bool = True
    """Workers could start at once: the fork server has imported what they need. A roster that comes earlier waits."""
    roster_generation: int | None = None
    """Newest roster that the agent has read."""
    current: GenerationProgress | None = None
    """The generation that runs or ran last in this pod."""
    previous: GenerationProgress | None = None
    """The one before it."""
    error: str | None = None
    """Why the agent cannot obey the roster, for people."""

    def tag(self) -> str:
        """Digest of the facts that somebody may have to act upon; counters that move with every step leave it alone."""
        current = self.current
        facts: list[object] = [self.pod_uid, self.ready, self.roster_generation, self.error]
        if current is not None:
            saved = current.saved[-1].step if current.saved else None
            times = (current.started_at, current.first_step_at, current.ended_at)
            facts += [current.generation, current.state, saved, current.exit is not None, *map(str, times)]
            facts.append(len(current.profiles))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class DeviceReport(ApiModel):
    """Answer of `videotrain-trainer devices`: what PyTorch can use on a machine."""

    pytorch: str
    """Version of PyTorch."""
    cuda: str | None = None
    """Version of CUDA that it was built for; None for a build without."""
    names: list[str] = Field(default_factory=list)
    """The devices' names, in CUDA's order; CUDA_VISIBLE_DEVICES has been applied."""
    problem: str = ""
    """Why there are none; empty also if the machine simply has none."""
