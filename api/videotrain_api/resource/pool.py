"""The node pool: what worker pods ask for, where they go and what the nodes cost."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from videotrain_api.schema import DEEPEST, ApiModel, patterned

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
ResourceName = Annotated[
    str,
    patterned(
        r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        "DOMAIN/NAME of an extended resource, such as nvidia.com/gpu",
        max_length=128,
    ),
]
LabelKey = Annotated[
    str,
    patterned(
        r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
        r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
        "a label key, such as topology.kubernetes.io/zone",
        max_length=317,
    ),
]
AnnotationKey = Annotated[
    str,
    patterned(
        r"^([A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*/)?"
        r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
        "a key such as example.com/note",
        max_length=317,
    ),
]
LabelValue = Annotated[
    str,
    patterned(
        r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$",
        "a label value: at most 63 letters, digits, '-', '_' or '.', starting and ending with a letter or digit",
        max_length=63,
    ),
]
ObjectName = Annotated[
    str,
    patterned(
        r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        "the name of a Kubernetes object: lower-case letters, digits, '-' and '.'",
        max_length=253,
    ),
]
Cpu = Annotated[
    str,
    patterned(
        r"^[1-9][0-9]{0,5}m?$",
        "a CPU quantity in quotes: whole cores such as '96' or thousandths such as '500m'",
        max_length=7,
    ),
]
Memory = Annotated[
    str,
    patterned(r"^[1-9][0-9]{0,8}(Mi|Gi|Ti)$", "a memory quantity in quotes, such as '1200Gi'", max_length=11),
]
ENV_NAME: Final = r"^[-._a-zA-Z][-._a-zA-Z0-9]{0,127}$"
EnvName = Annotated[
    str, patterned(ENV_NAME, "at most 128 letters, digits, '-', '_' and '.', and no digit at the start")
]
EnvValue = Annotated[str, Field(max_length=1024)]

RESERVED_ENV_PREFIXES: Final = ("VIDEOTRAIN_", "PET_", "TORCHELASTIC_")
"""The agent speaks to its workers, and torchrun is configured, through variables that start so."""
RESERVED_ENV: Final = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""Set per generation from the roster, or credentials, which do not belong in a manifest."""
ENV_ADVICE: Final = (
    f"names starting with {', '.join(RESERVED_ENV_PREFIXES)} and {', '.join(RESERVED_ENV)} are set by the operator; "
    "ranks and addresses come from the roster, credentials from storage.credentialsSecret"
)


def reserved_env(name: str) -> bool:
    """Whether a variable of the worker belongs to the operator."""
    return name in RESERVED_ENV or name.startswith(RESERVED_ENV_PREFIXES)


class Toleration(ApiModel):
    """A taint that worker pods tolerate, as in a Kubernetes pod."""

    key: str | None = None
    """Taint key; every taint if unset, with operator Exists."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How value is compared."""
    value: str | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; all effects if unset."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=1_000_000_000)
    """How long a NoExecute taint is tolerated, seconds; for ever if unset."""


class CacheVolume(ApiModel):
    """The volume for downloaded weights and shards. Without storageClassName and claimName it is a folder on the node's
    own disk that goes with the pod.
    """

    size_gibibytes: int | None = Field(default=None, ge=1, le=1_048_576)
    """Size of the ephemeral volume, or most that the folder on the node's disk may hold before the pod is evicted, GiB;
    no limit if unset."""
    storage_class_name: ObjectName | None = None
    """Each pod gets an ephemeral volume of this class, deleted with the pod; needs sizeGibibytes."""
    claim_name: ObjectName | None = None
    """Existing PersistentVolumeClaim; each worker uses a folder of its own in it, named like the pod, so that a
    replacement finds what its predecessor downloaded. On several nodes it must be ReadWriteMany."""


class Pool(ApiModel):
    """The nodes of a stage and what they cost."""

    gpus_per_node: int = Field(ge=0, le=64)
    """GPUs of a node; a worker pod takes them all and runs one process on each. In `videotrain local` a worker process
    stands for a GPU; it has one of its own if the machine has enough. 0: nodes without GPUs, for stages that curate;
    one process uses all cores that its pod has. Such nodes need pricePerNodeHour."""
    gpu_memory_gigabytes: float = Field(default=141.0, gt=0, le=1_000_000)
    """Memory of one GPU, 10^9 bytes, as its maker names it: 141 for an H200, 80 for an H100. A stage that trains is
    refused if a row of its bucket table needs more (`videotrain plan` prints it); whoever knows better gives more."""
    gpu_resource: ResourceName = "nvidia.com/gpu"
    """Extended resource name of the GPUs, as the device plugin advertises it."""
    price_per_gpu_hour: Money | None = None
    """What one GPU costs for an hour, decimal string in the run's currency; required unless gpusPerNode is 0. A pod is
    billed at the price of its creation, or by the cluster's price list where that has one for its node."""
    price_per_node_hour: Money | None = None
    """What a node without GPUs costs for an hour, likewise. Only with gpusPerNode 0, and always then."""
    cpu: Cpu | None = None
    """CPU requested by a worker pod, in cores; never a limit, since a throttled data loader starves GPUs. Nothing is
    requested if unset: set it where nodes are shared."""
    memory: Memory | None = None
    """Memory of a worker pod, requested and its limit; /dev/shm counts towards it. No limit if unset, but then the pod
    is the first to go when a node runs out of memory."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    """Labels that a node must have."""
    topology_keys: list[LabelKey] = Field(default_factory=list, max_length=4)
    """Node labels by which workers are drawn together, the most important first, such as an NVLink or rack label and
    then topology.kubernetes.io/zone. A preference only: a pod that finds no room near the others goes elsewhere."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    """Tolerations of the worker pods, beside those for lost nodes that the operator sets."""
    priority_class_name: ObjectName | None = None
    """Priority class of the worker pods; the cluster's default if unset."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the worker pods; the cluster's default if unset."""
    runtime_class_name: ObjectName | None = None
    """Runtime class of the worker pods, such as nvidia; the node's default if unset."""
    rdma_resource: ResourceName | None = None
    """Extended resource name of the RDMA devices; no RDMA if unset."""
    rdma_count: int = Field(default=1, ge=1, le=64)
    """RDMA devices of a worker pod: 1 where one stands for all adapters of the node, otherwise usually one per GPU."""
    shm_gibibytes: int = Field(default=64, ge=1, le=4096)
    """Size of the memory-backed /dev/shm, GiB; NCCL and data loaders use it."""
    cache: CacheVolume = CacheVolume()
    """Volume for downloaded weights and shards."""
    env: dict[EnvName, EnvValue] = Field(default_factory=dict, max_length=64)
    """Environment of the workers for what belongs to the pool, such as NCCL_SOCKET_IFNAME, NCCL_IB_HCA or
    GLOO_SOCKET_IFNAME. Names that the operator sets and credentials are refused."""
    on_cordon: Literal["Stay", "Leave"] = "Stay"
    """What workers do when their node is cordoned. Stay: go on, as Kubernetes has it: a cordon only keeps pods away,
    and `kubectl drain` evicts them after it, whereupon they save. Leave: save at once and go on elsewhere."""
    service_account_name: ObjectName | None = None
    """Service account of the worker pods; its identity is used for the object store if no secret is named. No token of
    the Kubernetes API is mounted."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Names of image pull secrets."""

    @property
    def processes(self) -> int:
        """Worker processes of a pod: one for each GPU; one where there is none."""
        return self.gpus_per_node or 1

    @property
    def price(self) -> str:
        """Of an hour of a GPU, or of a node that has none."""
        return (self.price_per_gpu_hour if self.gpus_per_node else self.price_per_node_hour) or "0"

    @property
    def cores(self) -> float | None:
        """Of a pod, as far as they are asked for."""
        if self.cpu is None:
            return None
        return int(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)


class RunPool(Pool):
    """The nodes to run on and what they cost, for every stage that has no pool of its own."""

    currency: Currency = "USD"
    """Currency of every amount of the run."""


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is nested so deep that the programs which read and merge it would fail."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        parts = [part for node in level for part in (node.values() if isinstance(node, dict) else node)]
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return value
    raise ValueError(f"is nested deeper than {DEEPEST} levels, which no pod needs")


class PodTemplateMetadata(ApiModel):
    """Labels and annotations to add."""

    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels of the worker pods beside the operator's; names below videotrain.dev/ are refused."""
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    """Annotations of the worker pods beside the operator's; names below videotrain.dev/ are refused."""


class PodTemplate(ApiModel):
    """A strategic merge patch for the worker pods, laid over what the operator renders."""

    metadata: PodTemplateMetadata = PodTemplateMetadata()
    """Labels and annotations."""
    spec: Annotated[dict[str, Any], AfterValidator(_bounded)] = Field(default_factory=dict)
    """Part of a PodSpec. Lists merge as with `kubectl patch`: containers, env and volumes by name, volumeMounts by
    mountPath, ports by containerPort; tolerations are appended, other lists are replaced; null removes a field and
    `$patch: delete` an item. Sidecars may be added; the container `worker` cannot be removed."""
