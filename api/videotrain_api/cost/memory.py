"""GPU memory of a training step, by arithmetic alone.

Activations and temporaries come from `traced`: one forward and one backward pass of each kind of block, taken from the
project's own model, as bytes in proportion to tokens and sizes. A micro-batch is walked block by block, forward and
backward, beside what the engine holds (`model_state`), and the largest moment is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from videotrain_api.cost import traced
from videotrain_api.cost.flops import MmditShape
from videotrain_api.cost.model_state import ModelState
from videotrain_api.resource.stages import Recompute
from videotrain_api.schema import ApiModel

RESERVE: Final = 4_000_000_000
"""Bytes that torch does not count: CUDA's context, NCCL's buffers, workspaces of cuBLAS and cuDNN. Assumed."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch on one GPU."""

    samples: int
    image_tokens: int
    """Of a sample, on this GPU: its share where several GPUs take one sequence."""
    text_tokens: int
    recompute: Recompute = "none"
    recomputed: tuple[int | None, int | None] = (None, None)
    """The first so many two-stream and one-stream blocks that `full` is for, the others keeping everything; None for
    all."""
    compiled: bool = True
    """Blocks run fused by torch.compile, not one operation after another."""
    float32: bool = False
    shares_heads: bool = False
    """GPUs of a node share the sequence and split its heads for attention."""
    ring_parts: int = 1
    """Parts of the sequence that take turns in attention, on other GPUs."""


class GpuMemory(ApiModel):
    """What one GPU holds at the largest moment of a step, bytes."""

    weights: int
    gradients: int
    optimizer: int
    """Master weights and moments."""
    average: int
    """Moving average of the weights."""
    activations: int
    """Kept for the backward pass."""
    temporaries: int
    """What the block that runs needs beside them, and the engine's buffers."""
    reserve: int
    """See RESERVE."""
    text: int = 0
    """Text encoders beside training: their weights, and a pass over captions."""

    @property
    def total(self) -> int:
        """All of it."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.average
            + self.activations
            + self.temporaries
            + self.reserve
            + self.text
        )


def gpu_memory(shape: MmditShape, state: ModelState, batch: MicroBatch, text: int = 0) -> GpuMemory:
    """Memory of one GPU at the largest moment of a step.

    Args:
        shape: of the transformer.
        state: what the engine holds.
        batch: a micro-batch.
        text: bytes of text encoders beside it.
    """
    worst = max(_moments(shape, batch), key=lambda moment: moment.activations + moment.temporaries)
    return GpuMemory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        average=state.average,
        activations=round(worst.activations),
        temporaries=round(worst.temporaries) + state.buffers,
        reserve=RESERVE,
        text=text,
    )


def drawing_memory(shape: MmditShape, batch: MicroBatch) -> int:
    """Most bytes beside the weights of a forward pass without gradients, block by block, as videos are drawn."""
    batch = replace(batch, recompute="full", recomputed=(None, None))
    edges, runs = _evaluated(shape, batch, traced.EDGES, 1), _runs(shape, batch)
    # A block is given what another one made, and keeps nothing else.
    return round(edges.kept + max([edges.forward, *(run.kept + run.forward for run in runs)]))


@dataclass(frozen=True)
class _Moment:
    activations: float
    temporaries: float


@dataclass(frozen=True)
class _Run:
    """Equal blocks, one after another."""

    blocks: int
    kept: float
    """Bytes of each."""
    forward: float
    backward: float


def _moments(shape: MmditShape, batch: MicroBatch) -> Iterator[_Moment]:
    """Forward passes, the loss, backward passes; of equal blocks the last in order, beside which most is kept.

    Gradients of weights are the engine's part: see `model_state`.
    """
    edges = _evaluated(shape, batch, traced.EDGES, 1)
    runs = _runs(shape, batch)
    held = edges.kept
    for run in runs:
        held += run.blocks * run.kept
        yield _Moment(held - run.kept, run.forward)
    yield _Moment(held, edges.backward - edges.kept)
    for run in reversed(runs):
        yield _Moment(held, max(run.backward - run.kept, 0.0))
        held -= run.blocks * run.kept
    yield _Moment(0.0, edges.backward)


def _runs(shape: MmditShape, batch: MicroBatch) -> list[_Run]:
    found: list[_Run] = []
    kernels: traced.Kernels = "compiled" if batch.compiled else "eager"
    limits = batch.recomputed if batch.recompute == "full" else (None, None)
    kinds: tuple[tuple[traced.Kind, int], ...] = (("double", shape.double_blocks), ("single", shape.single_blocks))
    for (kind, blocks), limit in zip(kinds, limits, strict=True):
        recomputed = blocks if limit is None else min(limit, blocks)
        policies: tuple[tuple[Recompute, int], ...] = ((batch.recompute, recomputed), ("none", blocks - recomputed))
        for policy, count in policies:
            if count:
                block = _evaluated(shape, batch, traced.BLOCKS[kernels, policy, kind], count)
                found.append(_shared(shape, batch, block, policy, kind))
    return found


def _shared(shape: MmditShape, batch: MicroBatch, block: _Run, policy: Recompute, kind: traced.Kind) -> _Run:
    """The block with what sharing a sequence adds to it, taken from blocks that run operation by operation."""
    alone = _evaluated(shape, batch, traced.BLOCKS["eager", policy, kind], 1)
    if batch.shares_heads:
        heads = _evaluated(shape, batch, traced.SHARED["heads", policy, kind], 1)
        block = _more(block, heads.kept - alone.kept, heads.forward - alone.forward, heads.backward - alone.backward)
    if batch.ring_parts > 1:
        few, many = (_evaluated(shape, batch, traced.SHARED[name, policy, kind], 1) for name in ("ring3", "ring8"))
        # What is kept grows with every part alike; what a part needs in passing is there from three of them on.
        grown = (many.kept - few.kept) * (batch.ring_parts - 3) / 5
        passing = (few.forward - alone.forward + grown, few.backward - alone.backward + grown)
        block = _more(block, few.kept - alone.kept + grown, *passing)
    return block


def _more(block: _Run, kept: float, forward: float, backward: float) -> _Run:
    return replace(block, kept=block.kept + kept, forward=block.forward + forward, backward=block.backward + backward)


def _evaluated(shape: MmditShape, batch: MicroBatch, trace: traced.Trace, blocks: int) -> _Run:
    features = _features(shape, batch)
    factor = 2.0 if batch.float32 else 1.0  # traced in bfloat16; of what is float32 anyway an upper bound

    def bytes_of(vector: traced.Vector) -> float:
        return factor * sum(a * b for a, b in zip(vector, features, strict=True))

    return _Run(blocks, bytes_of(trace.kept), max(map(bytes_of, trace.forward)), max(map(bytes_of, trace.backward)))


def _features(shape: MmditShape, batch: MicroBatch) -> list[float]:
    """The numbers that `traced.FEATURES` names."""
    widths = (shape.hidden, shape.feed_forward, shape.heads, shape.hidden // shape.heads, 1)
    image, text = batch.samples * batch.image_tokens, batch.samples * batch.text_tokens
    return [
        *(image * width for width in widths),
        *(text * width for width in widths),
        image * shape.patch_channels,
        image * shape.condition_channels,
        text * shape.context,
        batch.samples * shape.hidden,
        shape.hidden**2,
        shape.hidden * shape.feed_forward,
        1,
    ]
