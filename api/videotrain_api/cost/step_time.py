"""How long a training step takes: modelled from counts of the model's work and stated rates.

Counts are exact: FLOPs by formula, elementwise traffic as counted per token and block at the published size (eager
kernels, and those that Inductor makes for sm_90). Rates are assumed or quoted, see `rates`. No GPU measured any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from videotrain_api.cost.flops import MmditShape, attention_flops, block_flops, parameters, product_flops
from videotrain_api.cost.rates import EIGHT_BIT, Rates
from videotrain_api.resource.stages import AttentionKernel, Recompute

_BYTES: Final = 2
"""Of a number in bf16."""
_TRAFFIC: Final = {
    "eager": ((106.5, 228.0), (103.5, 226.0)),
    "compiled": ((35.2, 61.4), (22.1, 47.2)),
    "selective": ((31.1, 88.7), (20.1, 68.4)),
}
"""Elementwise traffic of the forward and backward pass of a double and a single block, in hidden sizes of bf16 per
token. `selective` is compiled, with its recomputation in the backward pass."""
_BACKWARD_ATTENTION: Final = 2.5
"""Forward passes of attention that its backward kernel computes, since it makes the scores again."""
_STATE_BYTES: Final = 38
"""Read and written per parameter by norm, clipping, AdamW and the new bf16 weights."""
_UNSHARDED: Final = (18, 8, 36)
"""The same per parameter of the *whole* model where every GPU keeps all gradients in float32: to add a micro-batch's
gradients up, to scale what was added up, and at the end of the step."""
_HOST_MEMORY: Final = 25e9
"""Bytes/s of the host's memory for one of eight GPUs, where the optimizer is there. Assumed."""
_HOST_LINK: Final = 50e9
"""Bytes/s between a GPU and pinned memory. Assumed."""
_MOVED_BYTES: Final = 6
"""Per parameter: float32 gradients to the host, bf16 weights back."""
_NODE: Final = 8
"""GPUs that reach each other without a network."""
_LAUNCHES: Final = 0.02
"""Seconds of a step's end that are not bytes. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What of a stage decides how fast its steps are."""

    recompute: Recompute
    double_blocks: int
    """Recomputed whole, under `full`."""
    single_blocks: int
    """Recomputed whole, under `full`."""
    compiled: bool
    attention: AttentionKernel
    eight_bit: bool
    """Large matrix products in FP8."""
    sharded_gradients: bool
    """Gradients are reduced to their owners under the backward pass."""
    gathers_under_forward: bool
    """Weights come together block by block under the forward pass, and not at the end of the step."""
    gathers_in_each_pass: bool = False
    """Weights come together anew in the forward and in the backward pass of each micro-batch, as under ZeRO stage 3."""
    offloaded: bool
    """Master weights and moments are in the host's memory, and are updated there."""
    adapter: int | None = None
    """Parameters of an adapter, beside which all weights are frozen and get no gradients; None if all are trained."""
    text_flops: float = 0.0
    """Of encoding a caption beside the steps; each GPU that shares a sample encodes all of its caption."""


@dataclass(frozen=True)
class RowSize:
    """What one GPU computes in a micro-batch."""

    image_tokens: int
    text_tokens: int
    samples: int
    """Of the data-parallel group."""
    context_parallel: int
    """GPUs of the group."""
    ring_parts: int = 1
    """Parts of the sequence that take turns in ring attention, of groups that exchange heads."""


@dataclass(frozen=True)
class MicroBatchTime:
    """Seconds of one micro-batch, by what they go to."""

    products: float
    attention: float
    elementwise: float
    exchange: float
    """Of context parallelism; nothing is hidden."""
    repeated: float
    """Matrix products and attention that are computed again; not in the others."""
    text: float = 0.0
    """Of captions that are encoded meanwhile: the GPU has no room for both at once."""

    @property
    def total(self) -> float:
        """Seconds of the micro-batch."""
        return self.products + self.attention + self.elementwise + self.exchange + self.repeated + self.text

    @property
    def forward(self) -> float:
        """Seconds under which weights can be gathered: one of three parts."""
        return (self.products + self.attention + self.elementwise) / 3

    @property
    def backward(self) -> float:
        """Seconds under which reductions can hide: two of three parts, and what is repeated."""
        return 2 / 3 * (self.products + self.attention + self.elementwise) + self.repeated


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    micro_batch: MicroBatchTime
    rounds: int
    """Micro-batches one after another."""
    tail: float
    """Reductions that nothing hides, and the update of the weights."""
    idle: float
    """Between micro-batches."""
    share: float
    """See `Rates.share`."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return (self.micro_batch.total * self.rounds + self.tail + self.idle) / self.share


def micro_batch_time(shape: MmditShape, row: RowSize, features: Features, rates: Rates) -> MicroBatchTime:
    """Time of one micro-batch on one GPU of its group."""
    tokens = row.image_tokens + row.text_tokens
    work = row.samples / row.context_parallel
    products = product_flops(shape, row.image_tokens, row.text_tokens) * work
    attention = attention_flops(shape, tokens) * work
    product_rate = rates.products * (EIGHT_BIT if features.eight_bit else 1)
    forward_rate, backward_rate = rates.attention[features.attention]
    doubles, singles = _recomputed(features)
    double, single = block_flops(shape)
    blocks = max(1, shape.double_blocks + shape.single_blocks)
    repeated = (doubles * double + singles * single) * tokens * work / product_rate
    repeated += attention * (doubles + singles) / blocks / forward_rate
    return MicroBatchTime(
        products=(3 if features.adapter is None else 2) * products / product_rate,
        attention=attention * (1 / forward_rate + _BACKWARD_ATTENTION / backward_rate),
        elementwise=_traffic(shape, features) * tokens * work / rates.memory,
        exchange=_exchange(shape, tokens, row, rates),
        repeated=repeated,
        text=row.samples * features.text_flops / rates.products,
    )


def step_time(shape: MmditShape, row: RowSize, rounds: int, gpus: int, features: Features, rates: Rates) -> StepTime:
    """Time of a step in which every GPU computes so many micro-batches of the row."""
    micro_batch = micro_batch_time(shape, row, features, rates)
    trained = parameters(shape) if features.adapter is None else features.adapter
    tail = _tail(trained, rounds, gpus, micro_batch, features, rates)
    return StepTime(micro_batch, rounds, tail, rates.idle * rounds, rates.share)


def _recomputed(features: Features) -> tuple[int, int]:
    return (features.double_blocks, features.single_blocks) if features.recompute == "full" else (0, 0)


def _traffic(shape: MmditShape, features: Features) -> float:
    """Elementwise bytes of all blocks, per token."""
    mode = "eager" if not features.compiled else "selective" if features.recompute == "selective" else "compiled"
    units = 0.0
    for count, again, (forward, backward) in zip(
        (shape.double_blocks, shape.single_blocks), _recomputed(features), _TRAFFIC[mode], strict=True
    ):
        units += count * (forward + backward) + again * forward
        if features.recompute == "selective" and not features.compiled:
            units += count * forward
    return units * shape.hidden * _BYTES


def _exchange(shape: MmditShape, tokens: int, row: RowSize, rates: Rates) -> float:
    """Seconds of context parallelism in the forward and the backward pass of all blocks."""
    heads = row.context_parallel // row.ring_parts
    # Queries, keys, values and outputs, and their gradients, to the GPUs that have the other heads.
    sent = 8 * tokens / row.context_parallel * shape.hidden * _BYTES * (heads - 1) / heads
    # Keys and values of the other parts, in both passes, and their gradients in float32 straight back to those parts.
    pair = 2 * tokens / row.ring_parts * shape.hidden / heads
    turns = row.ring_parts - 1
    ring = pair * (2 * _BYTES + 4) * turns
    blocks = (shape.double_blocks + shape.single_blocks) * row.samples
    return blocks * (sent / rates.exchange + ring / rates.reduce)


def _tail(size: int, rounds: int, gpus: int, micro_batch: MicroBatchTime, features: Features, rates: Rates) -> float:
    """Seconds of a step that hide under no pass of a micro-batch, and of the update of `size` parameters."""
    bandwidth = rates.reduce_in_node if gpus <= _NODE else rates.reduce
    others = (gpus - 1) / gpus
    gather, reduce = others * 2 * size / bandwidth, others * 4 * size / bandwidth
    late = 0.0 if features.gathers_under_forward else gather
    if features.sharded_gradients:
        each = gather if features.gathers_in_each_pass else 0.0
        exposed = max(0.0, each - micro_batch.forward) + max(0.0, each + reduce - micro_batch.backward)
        update = _STATE_BYTES / gpus * size / (_HOST_MEMORY if features.offloaded else rates.memory)
        moved = _MOVED_BYTES / gpus * size / _HOST_LINK if features.offloaded else 0.0
        return _LAUNCHES + update + moved + late + rounds * exposed
    add, scale, end = _UNSHARDED
    passes = add * rounds + scale * (rounds - 1) + end + _STATE_BYTES / gpus
    return passes * size / rates.memory + 2 * reduce + late
