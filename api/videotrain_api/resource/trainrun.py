"""The `VideoTrainingRun` resource as users write it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field

from videotrain_api import __version__
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.locations import Location, StorageUri
from videotrain_api.resource.pool import (
    AnnotationKey,
    LabelKey,
    LabelValue,
    Money,
    ObjectName,
    PodTemplate,
    Pool,
    RunPool,
)
from videotrain_api.resource.sources import Source
from videotrain_api.resource.stage_names import DNS_LABEL
from videotrain_api.resource.stages import NodeBounds, Stage, Subset
from videotrain_api.resource.tracking import Tracking
from videotrain_api.schema import ApiModel
from videotrain_api.vocabulary import API_VERSION, KIND

LONGEST_SECONDS: Final = 1_000_000_000
"""Thirty years; dates end some way beyond."""
TRAINER_IMAGE: Final = f"videotrain/trainer:{__version__}"
"""Image of runs that name none, on clusters that name none."""
Cause = Literal["application", "infrastructure", "preemption", "hang"]
"""Why a generation ended before its time; each has a restart budget of its own."""
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)


class Metadata(ApiModel):
    """The part of Kubernetes object metadata that is read; the rest is accepted and kept."""

    model_config = ApiModel.model_config | {"extra": "allow"}

    name: Annotated[str, DNS_LABEL]
    """DNS label; at most 40 characters, since pod names are derived from it."""
    namespace: str = "default"
    """Namespace."""
    uid: str | None = None
    """Set by the API server."""
    generation: int | None = None
    """Set by the API server; rises with every change of spec."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels; those starting with `videotrain.dev/` other than team and cost-center are set by the operator."""
    annotations: dict[AnnotationKey, str] = Field(default_factory=dict)
    """Annotations."""


class Storage(ApiModel):
    """The object store that holds curated clips, shards, checkpoints and samples."""

    uri: StorageUri
    """Bucket and prefix under which everything of this run is written."""
    endpoint_url: str | None = None
    """S3 endpoint; AWS if unset. `videotrain local` starts a server of its own if unset."""
    region: str = "us-east-1"
    """Region for request signing."""
    credentials_secret: ObjectName | None = None
    """Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the pod's identity is used if unset."""


class Dataset(ApiModel):
    """What the run learns from. Give the earliest form at hand; stages make the later ones."""

    videos: Location | None = None
    """Folder of raw videos: s3://, file:// or package://MODULE/FOLDER of a package in the image. Input of `curate`.
    A text file of the same stem beside a video holds its caption."""
    captions: dict[str, str] = Field(default_factory=dict)
    """Captions by file stem for videos without a text file; the stem itself is the last resort."""
    caption_table: Location | None = None
    """Table with more captions: a .csv or .parquet file, or a folder of .parquet files, s3:// or file://, with the
    columns `path` (a video's path below `videos`, or its stem) and `text`. `captions` goes before it."""
    clips: Location | None = None
    """URI of a curated set (manifest.parquet and mp4 files); made by a `curate` stage if unset."""
    latents: Location | None = None
    """URI of an encoded set (manifest.parquet and tar shards); made by an `encode` stage if unset."""
    sources: list[Source] = Field(default_factory=list, max_length=64)
    """Several folders instead of `videos`, or encoded sets instead of `latents`, each with its share of training."""
    subsets: list[Subset] = Field(default_factory=list, max_length=16)
    """Selections by scores for train.subset."""

    @property
    def raw(self) -> dict[str, str]:
        """Where raw videos are, by name of the source; `videos` by the empty name."""
        given = {"": self.videos} if self.videos is not None else {}
        return given | {source.name: source.uri for source in self.sources if source.form != "latents"}

    @property
    def encoded(self) -> dict[str, str]:
        """Encoded sets by name of the source; `latents` by the empty name."""
        given = {"": self.latents} if self.latents is not None else {}
        return given | {source.name: source.uri for source in self.sources if source.form == "latents"}


class Budget(ApiModel):
    """Limits on what the run may spend. Raising them while running takes effect at once."""

    max_cost: Money | None = None
    """Most money to spend, decimal string in pool.currency."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Most GPU-hours to hold; nodes without GPUs do not count."""
    warn_at_percent: list[Annotated[int, Field(ge=1, le=100)]] = Field(default_factory=lambda: [50, 80], max_length=100)
    """A warning event is emitted when so many percent are spent."""
    action: Literal["Notify", "Shrink", "CheckpointAndSuspend", "Fail"] = "CheckpointAndSuspend"
    """What happens before a limit would be passed at the next checkpoint: tell, go on with the fewest nodes, save and
    release the nodes until the limit is raised, or save and fail."""


class PeerCopies(ApiModel):
    """Copies of the newest state in the memory of other nodes."""

    every_steps: int = Field(ge=1)
    """After each multiple of so many optimizer steps a node's part of the state is copied to the memory of the next
    one. A lost node then costs at most so many steps. Copies lie in /dev/shm; see pool.shmGibibytes."""


class CheckpointPolicy(ApiModel):
    """When state is saved and what is kept."""

    every_steps: int = Field(default=200, ge=1)
    """A checkpoint is begun after each multiple of so many optimizer steps."""
    every_seconds: int | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """A checkpoint is also begun after the first step that ends so many seconds after the one before was begun."""
    peer_copies: PeerCopies | None = None
    """Keep copies of the newest state in memory, from which a world goes on that has lost one node. Unset: none are
    kept, and it goes on from the newest checkpoint. A `train` or `autoencoder` stage goes on from what is newer."""
    keep_last: int = Field(default=3, ge=1)
    """So many newest complete checkpoints of a stage are kept."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of it are kept for ever."""


class FailureRule(ApiModel):
    """First match decides. A rule without conditions matches everything."""

    exit_codes: list[Annotated[int, Field(ge=1, le=255)]] = Field(default_factory=list, max_length=255)
    """Exit codes of a worker process or container; any if empty."""
    reasons: list[str] = Field(default_factory=list, max_length=64)
    """Reasons such as OOMKilled, Evicted, NodeLost, Hang; any if empty."""
    action: Literal["Restart", "ReplaceNode", "Fail", "Ignore"]
    """Start the next generation, also replace the pod's node, fail the run, or restart without counting it."""


class RestartLimits(ApiModel):
    """How many restarts of each cause a stage may use up; one more fails the run."""

    application: int = Field(default=3, ge=0)
    """Faults of the program: an exception, a wrong input, a NaN."""
    infrastructure: int = Field(default=50, ge=0)
    """Lost nodes, failed GPUs, storage outages."""
    preemption: int = Field(default=1000, ge=0)
    """Reclaimed or drained nodes."""
    hang: int = Field(default=5, ge=0)
    """Hangs: step counters that stood still."""


class FailurePolicy(ApiModel):
    """What happens when something fails."""

    rules: list[FailureRule] = Field(default_factory=list, max_length=64)
    """Ordered rules; the built-in table of exit codes and reasons decides when none matches."""
    limits: RestartLimits = RestartLimits()
    """Restart budgets by cause."""
    same_step_limit: int = Field(default=3, ge=1)
    """Generations in a row that may die at the same step before the run fails as NoProgress."""
    hang_seconds: int = Field(default=600, ge=5, le=LONGEST_SECONDS)
    """A step counter that stands still for so long while its pod looks alive is a hang, seconds."""
    start_seconds: int = Field(default=900, ge=5, le=LONGEST_SECONDS)
    """Time that a generation may take from its roster to its first step, seconds."""
    grace_seconds: int = Field(default=120, ge=1, le=86_400)
    """Time that workers get to finish their step and save after a stop request, seconds."""


class Elasticity(ApiModel):
    """When the world changes size."""

    wait_for_max_seconds: int = Field(default=60, ge=0, le=LONGEST_SECONDS)
    """How long a first generation waits for max nodes before it starts with what is there (at least min), seconds."""
    min_gain_seconds: int = Field(default=120, ge=0, le=LONGEST_SECONDS)
    """A grown world must save at least so much of the remaining time beyond its own restart, seconds."""


class Queue(ApiModel):
    """Gang admission through Kueue."""

    name: Annotated[ObjectName, Field(min_length=1)]
    """LocalQueue of the run's namespace that admits the pods, all or none."""
    priority_class: LabelValue | None = None
    """WorkloadPriorityClass; the queue's default if unset."""


class VideoTrainingRunSpec(ApiModel):
    """Desired state: a model, data, stages, nodes with a price, and rules."""

    model: TransformerSpec = TransformerSpec()
    """The transformer."""
    autoencoder: AutoencoderSpec
    """The autoencoder."""
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    """The text encoder."""
    dataset: Dataset
    """Data."""
    storage: Storage
    """Object store."""
    stages: list[Stage] = Field(min_length=1, max_length=32)
    """Stages, run one after another."""
    nodes: NodeBounds = NodeBounds()
    """Elastic bounds; a stage may set its own. May be changed while running."""
    pool: RunPool
    """Nodes and their price; a stage may have its own."""
    image: str | None = Field(default=None, min_length=1, max_length=512)
    """Trainer image; name a digest where tags may move, since pods of one world must run one program. Unset: the
    cluster's default, else videotrain/trainer of this version."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled; unset: Always for the tag latest, otherwise IfNotPresent."""
    budget: Budget | None = None
    """Spending limits; none if unset. May be changed while running."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    """Checkpoints."""
    failure_policy: FailurePolicy = FailurePolicy()
    """Restarts."""
    elasticity: Elasticity = Elasticity()
    """Growth."""
    queue: Queue | None = None
    """Kueue admission; pods are created directly if unset."""
    log_every_steps: int = Field(default=10, ge=1, le=1_000_000_000)
    """The first worker logs a line every so many steps, or units of a stage that does not train."""
    tracking: Tracking = Tracking()
    """Experiment trackers."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of sample order, noise and initial weights."""
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    """When a TrainingBudget runs short, runs of lower priority shrink and save first. May be changed while running.
    Which pods come first is up to pool.priorityClassName and queue.priorityClass."""
    suspend: bool = False
    """Save, release every node and wait. May be changed while running."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """Longest time with pods held, summed over suspensions, seconds; the run fails beyond it."""
    start_deadline_seconds: int | None = Field(default=None, ge=1, le=LONGEST_SECONDS)
    """Longest wait for the first step of the run, seconds; the run fails beyond it."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=LONGEST_SECONDS)
    """The finished run is deleted after so many seconds; kept if unset."""
    pod_template: PodTemplate | None = None
    """Strategic merge patch for the worker pods, for what the other fields do not say; fixed once the run exists."""


class VideoTrainingRun(ApiModel):
    """One training run, from raw data to a trained model and its bill."""

    api_version: Literal["videotrain.dev/v1alpha1"] = API_VERSION
    """Always videotrain.dev/v1alpha1."""
    kind: Literal["VideoTrainingRun"] = KIND
    """Always VideoTrainingRun."""
    metadata: Metadata
    """Object metadata."""
    spec: VideoTrainingRunSpec
    """Desired state."""
    status: dict[str, Any] | None = None
    """Observed state; see `videotrain_api.resource.status`. Written by the operator only."""


def node_bounds(run: VideoTrainingRun, stage: Stage | None) -> NodeBounds:
    """Node bounds of a stage: its own, else the run's. Those of the run if there is no stage."""
    return (stage.nodes if stage else None) or run.spec.nodes


def pool_of(run: VideoTrainingRun, stage: Stage | None) -> Pool:
    """Pool of a stage: its own, else the run's. That of the run if there is no stage."""
    return (stage.pool if stage else None) or run.spec.pool


def pool_name(run: VideoTrainingRun, stage: Stage | None) -> str | None:
    """By which pods of a stage's pool are told: the first stage that has such a pool; None for that of the run."""
    if stage is None or stage.pool is None:
        return None
    return next(each.name for each in run.spec.stages if each.pool == stage.pool)


def pools_of(run: VideoTrainingRun) -> dict[str, Pool]:
    """Every pool that a run names, by its field: `spec.pool`, and `spec.stages[1].pool` of stages with their own."""
    own = {f"spec.stages[{index}].pool": stage.pool for index, stage in enumerate(run.spec.stages)}
    return {"spec.pool": run.spec.pool} | {path: pool for path, pool in own.items() if pool is not None}


def pool_path(run: VideoTrainingRun, index: int) -> str:
    """The field with the pool of the stage at `index`."""
    return "spec.pool" if run.spec.stages[index].pool is None else f"spec.stages[{index}].pool"
