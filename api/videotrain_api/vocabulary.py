"""Every name that two parts must agree on: labels, annotations, environment, files, ports, reasons, exit codes."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, Literal

GROUP: Final = "videotrain.dev"
DOMAIN: Final = f"{GROUP}/"
"""Begins the names of our labels and annotations; they are written out, for people who search them."""
API_VERSION: Final[Literal["videotrain.dev/v1alpha1"]] = "videotrain.dev/v1alpha1"
KIND: Final[Literal["VideoTrainingRun"]] = "VideoTrainingRun"
PLURAL: Final = "videotrainingruns"
SHORT_NAME: Final = "vtr"
BUDGET_KIND: Final[Literal["TrainingBudget"]] = "TrainingBudget"
BUDGET_PLURAL: Final = "trainingbudgets"
BUDGET_SHORT_NAME: Final = "vtb"
FIELD_MANAGER: Final = "videotrain-operator"

# Labels of every owned object, beside app.kubernetes.io/{name,instance,component,managed-by}.
LABEL_RUN: Final = "videotrain.dev/run"
LABEL_RUN_UID: Final = "videotrain.dev/run-uid"
LABEL_INDEX: Final = "videotrain.dev/index"
LABEL_POOL: Final = "videotrain.dev/pool"
"""On a worker pod: the first stage with the pool that it was made for; absent for spec.pool."""
LABEL_BILL: Final = "videotrain.dev/bill"
"""On config maps with a bill that outlives its run; the value is the run's uid."""
LABEL_BILL_OPEN: Final = "videotrain.dev/bill-open"
"""On those of them that may still change."""
LABEL_BILL_STORED: Final = "videotrain.dev/bill-stored"
"""On those whose last bill was copied to an object store; the value stands for the place."""
LABEL_TEAM: Final = "videotrain.dev/team"
LABEL_COST_CENTER: Final = "videotrain.dev/cost-center"

ANNOTATION_PRICE: Final = "videotrain.dev/price"
"""On every worker pod: `PRICE CURRENCY` per hour of a GPU, or of a node without GPUs, when the pod was created; the
bill uses this snapshot."""
ANNOTATION_PROFILE: Final = "videotrain.dev/profile"
"""On a run: asks for a trace of some steps, such as `steps=3 ranks=0,8`; see resource.profiles."""
ANNOTATION_SUSPENDED_BY: Final = "videotrain.dev/suspended-by"
"""Who set spec.suspend; `videotrain local` resumes only what its own Ctrl-C suspended."""

ANNOTATION_ISSUED_BY: Final = "videotrain.dev/issued-by"
"""On the webhook's Secret: the operator made its certificates and may replace them."""

# Kueue, which admits the worker pods of a run together as a pod group.
KUEUE: Final = "kueue.x-k8s.io"
LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
LABEL_QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"
LABEL_QUEUE_MANAGED: Final = "kueue.x-k8s.io/managed"
"""Label and finalizer of a pod that Kueue's webhook took."""
LABEL_POD_GROUP: Final = "kueue.x-k8s.io/pod-group-name"
LABEL_GROUP_PLACE: Final = "kueue.x-k8s.io/pod-group-pod-index"
ANNOTATION_GROUP_SIZE: Final = "kueue.x-k8s.io/pod-group-total-count"
ANNOTATION_ROLE_HASH: Final = "kueue.x-k8s.io/role-hash"
ANNOTATION_RETRIABLE: Final = "kueue.x-k8s.io/retriable-in-group"
"""`false` on a pod: its group ends when all its pods are over, since nobody will replace them."""

# Data of a run's config maps.
FROZEN_SPEC_KEY: Final = "_spec.json"
"""Key of the frozen spec beside the stages' configurations; no stage can have that name."""
LEDGER_KEY: Final = "ledger.json"
"""Key of the ledger in the config map that holds it."""
BILL_KEY: Final = "bill.json"
"""Key of a run's bill in the config map that outlives the run."""
ROSTER_KEY: Final = "roster.json"
"""Key of the Roster in the config map that the worker pods mount at DIR_ROSTER; empty before the first generation."""

RUN_DEFAULTS_KEY: Final = "defaults.json"
"""File of the config map with the cluster's defaults for runs."""
SIGNING_KEY: Final = "key"
"""Key of the signing key in the Secret of a run, and of the master key in the operator's."""

CONTAINER_WORKER: Final = "worker"
"""The container of a worker pod that runs the agent; podTemplate may add others beside it."""
FILES_VOLUME: Final = "files"
"""The volume of a worker pod with what the operator tells it: roster, frozen configuration, signing key."""
VOLUMES_FIXED: Final = (FILES_VOLUME, "run")
"""Volumes by which operator, agent and workers speak; podTemplate may not touch them."""
VOLUMES: Final = (*VOLUMES_FIXED, "cache", "tmp", "shm")
"""All volumes that the operator makes; podTemplate may give the last three another source."""

# Files of a worker pod, relative to the pod's root (ENV_POD_ROOT, `/` in a container).
ENV_POD_ROOT: Final = "VIDEOTRAIN_POD_ROOT"
DIR_FILES: Final = "etc/videotrain"
DIR_ROSTER: Final = "etc/videotrain/roster"
"""Holds ROSTER_KEY: the run's roster, a mounted ConfigMap that the operator replaces. A kubelet may show a new one
after a minute or more, so the operator also sends it to the agents."""
DIR_KEY: Final = "etc/videotrain/key"
"""Holds SIGNING_KEY, 32 bytes; a mounted immutable Secret."""
DIR_CONFIG: Final = DIR_FILES
"""Holds `<stage>.json`, a StageConfig each; a mounted immutable ConfigMap."""
DIR_RUN: Final = "run/videotrain"
"""Scratch shared by agent and workers: records-<generation>-<local rank>.jsonl, exit-<generation>-<local rank>.json,
stacks-<generation>-<local rank>.txt, output-<generation>-<local rank>.pipe (what a worker prints, on its way to the
pod's log), worker-<generation>-<local rank>.pid (a worker that obeys SIGTERM)."""
DIR_CACHE: Final = "var/cache/videotrain"
DIR_COPIES: Final = "dev/shm/videotrain"
"""Copies of training state in memory, by which workers of one generation speak to those of the next."""

# Environment of a worker pod.
ENV_VISIBLE_GPUS: Final = "CUDA_VISIBLE_DEVICES"
ENV_POD_NAME: Final = "VIDEOTRAIN_POD_NAME"
ENV_POD_UID: Final = "VIDEOTRAIN_POD_UID"
ENV_POD_IP: Final = "VIDEOTRAIN_POD_IP"
ENV_NODE_NAME: Final = "VIDEOTRAIN_NODE_NAME"
ENV_RUN: Final = "VIDEOTRAIN_RUN"
ENV_NAMESPACE: Final = "VIDEOTRAIN_NAMESPACE"
ENV_REPLACEABLE: Final = "VIDEOTRAIN_REPLACEABLE"
"""`1`: an agent that is told to leave before its work is complete says so by its exit code. A queue replaces pods that
failed, and takes those that end with 0 for complete."""
# Environment that the agent gives to the workers of a generation.
ENV_GENERATION: Final = "VIDEOTRAIN_GENERATION"
ENV_CONFIG_FILE: Final = "VIDEOTRAIN_CONFIG_FILE"
ENV_RESTORE: Final = "VIDEOTRAIN_RESTORE"
"""`1`: start from the newest complete checkpoint of the stage, if there is one; `0`: do not look for one."""
ENV_RUN_UID: Final = "VIDEOTRAIN_RUN_UID"
ENV_SAVED_STEP: Final = "VIDEOTRAIN_SAVED_STEP"
"""Newest step of the stage that is known to be saved; `0` for none."""
ENV_ROSTER_AT: Final = "VIDEOTRAIN_ROSTER_AT"
"""When the roster of the generation was published, ISO 8601."""
ENV_LAUNCHED_AT: Final = "VIDEOTRAIN_LAUNCHED_AT"
"""When the agent ordered the workers of the generation, ISO 8601."""

PORT_AGENT: Final = 9410
"""HTTP of the agent: /metrics, /progress, /healthz, and PATH_ROSTER."""
PATH_ROSTER: Final = "/roster"
"""Takes a RosterNotice by POST, signed with the run's key."""
PORT_RENDEZVOUS: Final = 29400
"""First of RENDEZVOUS_PORTS ports; generation g uses PORT_RENDEZVOUS + g % RENDEZVOUS_PORTS."""
RENDEZVOUS_PORTS: Final = 64


class Phase(StrEnum):
    """One word for people; derived from conditions and never read back as input."""

    INVALID = "Invalid"
    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    RESIZING = "Resizing"
    """The world is changed as somebody or something planned: it grows, shrinks, or takes an edit of its stage."""
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(StrEnum):
    """Types in status.conditions, in the order in which they are listed; videotrain_api.reasons has their reasons."""

    RECONCILED = "Reconciled"
    ACCEPTED = "Accepted"
    QUOTA_RESERVED = "QuotaReserved"
    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    RESTARTING = "Restarting"
    RESIZING = "Resizing"
    NODES_TRUSTED = "NodesTrusted"
    PROGRESS_OBSERVED = "ProgressObserved"
    BUDGET_OK = "BudgetOK"
    TEAM_BUDGET_OK = "TeamBudgetOK"
    COMPLETE = "Complete"
    FAILED = "Failed"


class BudgetCondition(StrEnum):
    """Types in status.conditions of a TrainingBudget; videotrain_api.budget_reasons has their reasons."""

    WITHIN_BUDGET = "WithinBudget"
    ALL_COUNTED = "AllCounted"


class GenerationReason(StrEnum):
    """Why a generation was started."""

    STARTED = "Started"
    STAGE_STARTED = "StageStarted"
    RESUMED = "Resumed"
    NODE_LOST = "NodeLost"
    POD_FAILED = "PodFailed"
    WORKER_FAILED = "WorkerFailed"
    HANG = "Hang"
    PREEMPTED = "Preempted"
    GROW = "Grow"
    SHRINK = "Shrink"
    EDITED = "Edited"
    """The running stage was edited, and a checkpoint was completed since."""


PLANNED: Final = (GenerationReason.GROW, GenerationReason.SHRINK, GenerationReason.EDITED)
"""Reasons of generations that no fault brought about: the run is resized, not restarted."""


class ProfileState(StrEnum):
    """What became of a request for traces."""

    REQUESTED = "Requested"
    STORED = "Stored"
    FAILED = "Failed"
    REFUSED = "Refused"


class Bucket(StrEnum):
    """Where held GPU time goes. Exclusive, and together the whole held time."""

    STARTING = "starting"
    PRODUCTIVE = "productive"
    CHECKPOINT = "checkpoint"
    DATA_STALL = "dataStall"
    STALLED = "stalled"
    LOST = "lost"
    RESTARTING = "restarting"
    DRAINING = "draining"
    IDLE = "idle"


WASTE_CAUSES: Final = (
    "start",
    "idle",
    "data",
    "checkpoint",
    "application",
    "infrastructure",
    "preemption",
    "hang",
    "drained",
    "completed",
    "unknown",
)
"""Why money bought no progress: a wait, or what ended a generation; unknown while that is not on record."""


class ExitCode(IntEnum):
    """Exit codes of the trainer's processes. 64-78 follow sysexits.h where one fits."""

    OK = 0
    """Completed, or drained after a save; the worker's own record tells which."""
    INTERNAL = 1
    """An exception that nothing below explains: application."""
    CONFIG = 64
    """The stage configuration cannot be run; retrying cannot help."""
    DATA = 65
    """Data are missing, empty or damaged beyond the skip limit; retrying cannot help."""
    STORAGE = 69
    """The object store cannot be reached, or what it answers is cut: infrastructure."""
    DISK_FULL = 74
    """No space left for scratch or cache: infrastructure."""
    CHECKPOINT = 75
    """What this node reads of a checkpoint, or of another object that a stage trusts, does not fit its checksum, and no
    other node agrees yet: infrastructure, the node is suspect."""
    PERMISSION = 77
    """The object store refused the credentials for a minute, or the bucket does not exist: infrastructure. Another node
    is tried, then the run is suspended and tries again by itself."""
    DIVERGED = 80
    """The loss is not finite: application."""
    FENCED = 81
    """A newer generation exists; this one must stop writing. Not counted."""
    PEER_LOST = 82
    """A collective failed because another worker went away; its own fault is looked for there. Not counted."""
    HANG = 83
    """Killed by the agent because its step counter stood still."""
    CUDA = 84
    """The GPU or its driver failed: infrastructure, the node is suspect."""
    GRADIENTS = 85
    """The gradient check of a start: the engine's gradients are not the sums that they should be: application."""
    TERMINATED = 143
    """SIGTERM outside a drain: preemption."""
    KILLED = 137
    """SIGKILL: the kernel's out-of-memory killer or the node."""
