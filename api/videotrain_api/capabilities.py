"""What the trainer of this version can do.

One table for the rules, the CEL of the CRD and the trainer's own checks, so that nothing is admitted that is refused
once GPUs are paid for. Whoever gives the trainer an ability changes its entry here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from videotrain_api.resource.architecture import TransformerSpec
from videotrain_api.resource.stages import AttentionKernel, AutoencoderTask, TrainTask, ulysses_degree
from videotrain_api.schema import ApiModel, camel_case

FP8_MULTIPLE: Final = 16
"""Tensor cores take FP8 factors whose sides are multiples of it."""

TASKS_WITHOUT_GPUS: Final = ("curate",)
"""Tasks whose stages can have nodes without GPUs; all others compute on GPUs."""
TRAINED: Final = ("train", "autoencoder")
"""Tasks that this is about."""
SET: Final = "(set)"
"""Value of a setting whose field holds a model."""
Settings = Mapping[str, Any]
"""Values by the names of SETTINGS; None for a field that is unset."""
SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "context_parallel": ("parallel", "context_parallel"),
    "engine": ("parallel", "engine"),
    "zero_stage": ("parallel", "zero_stage"),
    "offload": ("parallel", "offload"),
    "checkpoint_double_blocks": ("parallel", "checkpoint_double_blocks"),
    "checkpoint_single_blocks": ("parallel", "checkpoint_single_blocks"),
    "precision": ("precision",),
    "fp8": ("fp8",),
    "lora": ("lora",),
    "quantize_base": ("lora", "quantize_base"),
    "adversarial": ("adversarial",),
}
"""What of a stage the exclusions are about: the attributes that lead to it from the task."""
MAY_BE_UNSET: Final = ("zero_stage", "lora")
"""Settings without a default that have other values than SET, or others inside."""
RING_KERNELS: Final[tuple[AttentionKernel, ...]] = ("auto", "flash", "flash3", "flash4")
"""Kernels of attention that run where parts of a sequence take turns: FlashAttention's, by torch's operator."""

_STREAM: Final = ("mod.lin", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.0", "mlp.2")
_EMBEDDER: Final = ("in_layer", "out_layer")
LINEAR_LAYERS: Final[Mapping[str, tuple[str, ...]]] = {
    "double_blocks": tuple(f"{stream}_{layer}" for stream in ("img", "txt") for layer in _STREAM),
    "single_blocks": ("q_proj", "k_proj", "v_mlp", "linear2", "modulation.lin"),
    "": (
        *("img_in", "txt_in", "cond_in", "final_layer.linear", "final_layer.adaLN_modulation.1"),
        *(f"{embedder}.{layer}" for embedder in ("time_in", "vector_in") for layer in _EMBEDDER),
    ),
}
"""Linear layers of the transformer that `lora.targets` can name: of each block of a kind, and beside the blocks."""


@dataclass(frozen=True)
class AnyBut:
    """Every value but these."""

    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """Values that a stage cannot have together."""

    when: Mapping[str, tuple[Any, ...] | AnyBut]
    """Values by the name of a setting."""
    blamed: str
    """The setting to change."""
    allowed: str
    """What to change it to, and why."""
    tasks: tuple[str, ...] = TRAINED


EXCLUSIONS: Final = (
    Exclusion(
        tasks=("autoencoder",),
        when={"context_parallel": AnyBut((1,))},
        blamed="context_parallel",
        allowed="an autoencoder stage does not split clips; allowed: 1",
    ),
    *(
        Exclusion(
            tasks=("autoencoder",),
            when={name: AnyBut((None,))},
            blamed=name,
            allowed="an autoencoder has no such blocks, see autoencoder.parallel.recompute; leave it out",
        )
        for name in ("checkpoint_double_blocks", "checkpoint_single_blocks")
    ),
    Exclusion(
        when={"engine": ("fsdp2",), "zero_stage": AnyBut((None,))},
        blamed="zero_stage",
        allowed="fsdp2 has no stages, it shards what stage 2 does; leave it out, or take engine deepspeed",
    ),
    Exclusion(
        when={"engine": ("deepspeed",), "zero_stage": (0,), "precision": ("bf16",)},
        blamed="zero_stage",
        allowed="stage 0 keeps no float32 master weights in bf16; allowed: 1 or more, or precision fp32",
    ),
    Exclusion(
        tasks=("train",),
        when={"fp8": (True,), "precision": ("fp32",)},
        blamed="fp8",
        allowed="FP8 products give bf16; allowed: false, or precision bf16",
    ),
    Exclusion(
        tasks=("train",),
        when={"fp8": (True,), "quantize_base": ("int8", "fp8")},
        blamed="fp8",
        allowed="FP8 products scale the weights as they are trained or frozen in bf16; allowed: false, or "
        "lora.quantizeBase none",
    ),
    Exclusion(
        when={"engine": ("deepspeed",), "zero_stage": (0,), "offload": ("optimizer",)},
        blamed="offload",
        allowed="in stage 0 every GPU keeps the whole optimizer; allowed: none, or zeroStage 1 or more",
    ),
    Exclusion(
        when={"lora": (SET,), "engine": ("deepspeed",), "zero_stage": (3,)},
        blamed="zero_stage",
        allowed="stage 3 would gather frozen weights in every pass; allowed for an adapter: 0, 1, 2, or engine fsdp2",
    ),
    # docs/decisions/0622-sharding-beside-a-discriminator.md
    Exclusion(
        when={"adversarial": (SET,), "engine": ("fsdp2",)},
        blamed="engine",
        allowed="the weight of the adversarial loss comes from gradients at the last layer, which fsdp2 keeps in "
        "pieces; allowed with adversarial: deepspeed",
    ),
    Exclusion(
        when={"adversarial": (SET,), "engine": ("deepspeed",), "zero_stage": (2, 3)},
        blamed="zero_stage",
        allowed="DeepSpeed can lose gradients silently from stage 2 on where a part of a model runs more than once in "
        "a step, as beside a discriminator; allowed with adversarial: 0 or 1",
    ),
)
"""What the trainer refuses for every world, in any order."""


@dataclass(frozen=True)
class Refusal:
    """Why the trainer does not take a stage."""

    path: str
    """Field on the wire, below the member that is named by the task, such as `parallel.zeroStage`."""
    value: Any
    allowed: str


@dataclass(frozen=True)
class Row:
    """How the micro-batches of a step are shared out, where a stage's bucket table or layout says so."""

    path: str
    """Of the field with the number of micro-batches, as in `Refusal`."""
    micro_batches: int
    degree_path: str
    """Of the field with the degree of context parallelism."""
    context_parallel: int

    def idles(self, processes: int) -> bool:
        """Whether some data-parallel group would have no micro-batch."""
        return processes // self.context_parallel > self.micro_batches


def linear_layers(model: TransformerSpec) -> Iterator[str]:
    """Names of all linear layers of a transformer whose sizes are complete."""
    counts = {"double_blocks": model.double_blocks or 0, "single_blocks": model.single_blocks or 0}
    for kind, layers in LINEAR_LAYERS.items():
        for layer in layers:
            if kind:
                yield from (f"{kind}.{number}.{layer}" for number in range(counts[kind]))
            elif layer != "cond_in" or model.cond_embed:
                yield layer


def wire_path(setting: str) -> str:
    """`zero_stage` becomes `parallel.zeroStage`."""
    return ".".join(map(camel_case, SETTINGS[setting]))


def settings_of(task: TrainTask | AutoencoderTask) -> dict[str, Any]:
    """The settings of a stage that trains."""
    found: dict[str, Any] = {}
    for name, attributes in SETTINGS.items():
        if attributes[0] in type(task).model_fields:
            value: Any = task
            for attribute in attributes:
                value = None if value is None else getattr(value, attribute)
            found[name] = SET if isinstance(value, ApiModel) else value
    return found


def refusals(settings: Settings, task: str | None = None) -> Iterator[Refusal]:
    """What the trainer cannot combine, in any world.

    Args:
        settings: of a stage, or some of them; an exclusion about others is not looked at.
        task: of the stage; without it, only what no task can have is looked at.
    """
    for exclusion in EXCLUSIONS:
        meant = task in exclusion.tasks or exclusion.tasks == TRAINED
        if meant and all(name in settings and _matches(settings[name], v) for name, v in exclusion.when.items()):
            yield Refusal(wire_path(exclusion.blamed), settings[exclusion.blamed], exclusion.allowed)


def _matches(value: Any, values: tuple[Any, ...] | AnyBut) -> bool:
    return value not in values.values if isinstance(values, AnyBut) else value in values


def rows_of(task: TrainTask | AutoencoderTask) -> list[Row]:
    """Every way in which a step of the stage is shared out, each once."""
    if isinstance(task, TrainTask):
        table = {f"buckets[{number}]": row for number, row in enumerate(task.buckets)}
    else:
        table = {"bucket": task.bucket}
    found = {
        Row(
            path=f"{path}.microBatches" if row.micro_batches else "parallel.microBatchesPerStep",
            micro_batches=task.parallel.micro_batches_of(row),
            degree_path=f"{path}.contextParallel" if row.context_parallel else "parallel.contextParallel",
            context_parallel=task.parallel.degree_of(row),
        ): None
        for path, row in table.items()
    }
    return list(found)


def row_refusals(task: TrainTask | AutoencoderTask) -> Iterator[Refusal]:
    """What the trainer cannot do with a row of the bucket table, in any world."""
    if isinstance(task, AutoencoderTask) and task.bucket.context_parallel not in (None, 1):
        allowed = "an autoencoder stage does not split clips; allowed: 1"
        yield Refusal("bucket.contextParallel", task.bucket.context_parallel, allowed)


def ring_refusals(task: TrainTask, gpus_per_node: int, heads: int) -> Iterator[Refusal]:
    """Kernels of attention that a row could not run on, because its sequences are shared in a ring."""
    for row in rows_of(task):
        ring = row.context_parallel > ulysses_degree(row.context_parallel, gpus_per_node, heads)
        if ring and task.attention not in RING_KERNELS:
            allowed = (
                f"{row.degree_path} {row.context_parallel} is more than nodes of {gpus_per_node} GPUs and {heads} "
                f"heads can share without a ring, which runs on FlashAttention; allowed: {', '.join(RING_KERNELS)}"
            )
            yield Refusal("attention", task.attention, allowed)
            return


def world_refusals(task: TrainTask | AutoencoderTask, processes: int) -> Iterator[Refusal]:
    """What the trainer cannot do with so many worker processes."""
    for row in rows_of(task):
        groups = processes // row.context_parallel
        if processes % row.context_parallel:
            allowed = f"must divide the {processes} worker processes"
            yield Refusal(row.degree_path, row.context_parallel, allowed)
        elif row.idles(processes):
            allowed = f"cannot occupy {groups} data-parallel groups; allowed: {groups} or more, or fewer nodes"
            yield Refusal(row.path, row.micro_batches, allowed)
