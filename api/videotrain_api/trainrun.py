"""The `VideoTrainingRun` resource as users write it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from videotrain_api.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.schema import ApiModel, patterned
from videotrain_api.stages import DNS_LABEL, NodeBounds, Stage
from videotrain_api.vocabulary import API_VERSION, KIND

Money = Annotated[
    str,
    patterned(
        r"^[0-9]{1,12}(\.[0-9]{1,6})?$",
        "a decimal string of 0 or more with at most six places, such as '2.00'; negative amounts make no sense here",
        max_length=19,
    ),
]
"""An amount as a decimal string with at most six places, so that no float ever holds money."""
Currency = Annotated[str, patterned(r"^[A-Z]{3}$", "an ISO 4217 code of three capital letters, such as USD")]
"""ISO 4217 code."""
Cause = Literal["application", "infrastructure", "preemption", "hang"]
"""Why a generation ended before its time; each has a restart budget of its own."""


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
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels; those starting with `videotrain.dev/` other than team and cost-center are set by the operator."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""


class Storage(ApiModel):
    """The object store that holds curated clips, shards, checkpoints and samples."""

    uri: Annotated[
        str,
        patterned(
            r"^s3://[a-z0-9][a-z0-9.-]{2,62}(/[^\s]*)?$",
            "s3://BUCKET/PREFIX with a bucket name of 3 to 63 lower-case letters, digits, '.' or '-'",
        ),
    ]
    """Bucket and prefix under which everything of this run is written."""
    endpoint_url: str | None = None
    """S3 endpoint; AWS if unset. `videotrain local` starts a server of its own if unset."""
    region: str = "us-east-1"
    """Region for request signing."""
    credentials_secret: str | None = None
    """Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the pod's identity is used if unset."""


class Dataset(ApiModel):
    """What the run learns from. Give the earliest form at hand; stages make the later ones."""

    videos: str | None = None
    """Folder of raw videos: s3://, file:// or, in `videotrain local`, package://MODULE/FOLDER. Input of `curate`.
    A text file of the same stem beside a video holds its caption."""
    captions: dict[str, str] = Field(default_factory=dict)
    """Captions by file stem for videos without a text file; the stem itself is the last resort."""
    clips: str | None = None
    """URI of a curated set (manifest.parquet and mp4 files); made by a `curate` stage if unset."""
    latents: str | None = None
    """URI of an encoded set (manifest.parquet and tar shards); made by an `encode` stage if unset."""


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: str | None = None
    """Taint key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How value is compared."""
    value: str | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; all effects if unset."""
    toleration_seconds: int | None = Field(default=None, ge=0)
    """How long a NoExecute taint is tolerated, seconds."""


class Pool(ApiModel):
    """The nodes to run on and what they cost."""

    gpus_per_node: int = Field(ge=1, le=64)
    """GPUs of a node; a worker pod takes them all and runs one process on each. In `videotrain local` a worker slot
    stands for a GPU."""
    gpu_resource: str = "nvidia.com/gpu"
    """Extended resource name of the GPUs."""
    price_per_gpu_hour: Money
    """What one GPU costs for an hour, decimal string in `currency`."""
    currency: Currency = "USD"
    """Currency of every amount of the run."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Tolerations of the worker pods, beside those for lost nodes that the operator sets."""
    priority_class_name: str | None = None
    """Priority class of the worker pods."""
    rdma_resource: str | None = None
    """Extended resource name of the RDMA device, one per pod; no RDMA if unset."""
    shm_gibibytes: int = Field(default=64, ge=1)
    """Size of the memory-backed /dev/shm, GiB."""
    service_account_name: str | None = None
    """Service account of the worker pods; its identity is used for the object store if no secret is named."""
    image_pull_secrets: list[str] = Field(default_factory=list)
    """Names of image pull secrets."""


class Budget(ApiModel):
    """Limits on what the run may spend. Raising them while running takes effect at once."""

    max_cost: Money | None = None
    """Most money to spend, decimal string in pool.currency."""
    max_gpu_hours: float | None = Field(default=None, gt=0)
    """Most GPU-hours to hold."""
    warn_at_percent: list[Annotated[int, Field(ge=1, le=100)]] = Field(default_factory=lambda: [50, 80])
    """A warning event is emitted when so many percent are spent."""
    action: Literal["Notify", "Shrink", "CheckpointAndSuspend", "Fail"] = "CheckpointAndSuspend"
    """What happens before a limit would be passed at the next checkpoint: tell, go on with the fewest nodes, save and
    release the nodes until the limit is raised, or save and fail."""


class CheckpointPolicy(ApiModel):
    """When state is saved and what is kept."""

    every_steps: int = Field(default=200, ge=1)
    """Optimizer steps between checkpoints."""
    keep_last: int = Field(default=3, ge=1)
    """So many newest complete checkpoints of a stage are kept."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of it are kept for ever."""


class FailureRule(ApiModel):
    """First match decides. A rule without conditions matches everything."""

    exit_codes: list[Annotated[int, Field(ge=1, le=255)]] = Field(default_factory=list)
    """Exit codes of a worker process or container; any if empty."""
    reasons: list[str] = Field(default_factory=list)
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
    """Frozen step counters."""


class FailurePolicy(ApiModel):
    """What happens when something fails."""

    rules: list[FailureRule] = Field(default_factory=list)
    """Ordered rules; the built-in table of exit codes and reasons decides when none matches."""
    limits: RestartLimits = RestartLimits()
    """Restart budgets by cause."""
    same_step_limit: int = Field(default=3, ge=1)
    """Generations in a row that may die at the same step before the run fails as NoProgress."""
    hang_seconds: int = Field(default=600, ge=5)
    """A step counter frozen for so long while its pod looks alive is a hang, seconds."""
    start_seconds: int = Field(default=900, ge=5)
    """Time that a generation may take from its roster to its first step, seconds."""
    grace_seconds: int = Field(default=120, ge=1)
    """Time that workers get to finish their step and save after a stop request, seconds."""


class Elasticity(ApiModel):
    """When the world changes size."""

    wait_for_max_seconds: int = Field(default=60, ge=0)
    """How long a first generation waits for max nodes before it starts with what is there (at least min), seconds."""
    min_gain_seconds: int = Field(default=120, ge=0)
    """A grown world must save at least so much of the remaining time beyond its own restart, seconds."""


class Queue(ApiModel):
    """Gang admission through Kueue."""

    name: str = Field(min_length=1)
    """LocalQueue that admits the run's pods."""
    priority_class: str | None = None
    """WorkloadPriorityClass."""


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
    pool: Pool
    """Nodes and their price."""
    image: str = Field(default="videotrain/trainer:0.1.0", min_length=1, max_length=512)
    """Trainer image."""
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
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of sample order, noise and initial weights."""
    suspend: bool = False
    """Save, release every node and wait. May be changed while running."""
    active_deadline_seconds: int | None = Field(default=None, ge=1)
    """Longest time with pods held, summed over suspensions, seconds; the run fails beyond it."""
    start_deadline_seconds: int | None = Field(default=None, ge=1)
    """Longest wait for the first step of the run, seconds; the run fails beyond it."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    """The finished run is deleted after so many seconds; kept if unset."""
    pod_template: dict[str, Any] | None = None
    """Strategic merge patch for the worker pod template (labels, annotations, spec)."""


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
    """Observed state; see `videotrain_api.status`. Written by the operator only."""
