"""What one GPU holds of a model between micro-batches, by engine, as the trainer configures them: pure arithmetic.

Trained parameters have weights in the data type of training, gradients that are accumulated in float32, and float32
master weights and moments, shared out over the ranks as the engine does. Frozen ones have their weights alone, perhaps
in 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from videotrain_api.resource.stages import EngineName, Offload

ZERO_BUCKET: Final = 200_000_000
"""Elements that DeepSpeed reduces at once."""
ZERO_LIVE: Final = 1_000_000_000
"""Elements of sharded weights that DeepSpeed's stage 3 keeps whole at most."""
_MOMENTS: Final = 8
_FLOAT32: Final = 4


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How the state is spread."""

    engine: EngineName
    zero_stage: int
    """Of DeepSpeed."""
    offload: Offload
    ranks: int
    """GPUs of the world."""
    float32: bool
    """Forward and backward in float32 instead of bfloat16."""
    average: bool
    """A moving average of the weights is kept."""
    keeps_gathered: bool = False
    """What stage 3 gathers stays until the backward pass: linear layers that run one operation after another, without
    recomputation, keep a view of their weights."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many there are."""

    trained: int
    frozen: int
    largest_block: int
    """Of the largest unit that is gathered and reduced as one."""
    quantized: int = 0
    """Of the frozen ones, those that are held in 8 bits."""
    scales: int = 0
    """Beside the quantised ones, in the data type of training."""
    widened: int = 0
    """Quantised ones in the data type of training, at most, where they are multiplied."""


@dataclass(frozen=True)
class ModelState:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    buffers: int
    """Of the engine's communication, and weights that are widened where they are multiplied."""


def model_state(parameters: Parameters, sharding: Sharding) -> ModelState:
    """Weights, gradients and optimizer that one GPU holds all through a step."""
    trained, ranks = parameters.trained, sharding.ranks
    width = _FLOAT32 if sharding.float32 else 2
    stage = 2 if sharding.engine == "fsdp2" else sharding.zero_stage
    share = 1 if stage == 0 else ranks
    # Stage 0 updates the weights themselves, in float32; FSDP2's float32 shards are its master weights.
    masters = 0 if stage == 0 else _FLOAT32
    optimizer = 0 if sharding.offload == "optimizer" else _per(trained * (masters + _MOMENTS), share)
    weights = _per(trained * width, ranks if stage == 3 else 1) + parameters.quantized
    weights += (parameters.frozen - parameters.quantized + parameters.scales) * width
    if stage == 3 and sharding.keeps_gathered:
        weights += trained * width
    return ModelState(
        weights=weights,
        gradients=_gradients(trained, stage, sharding),
        optimizer=optimizer,
        average=_per(trained * _FLOAT32, share) if sharding.average else 0,
        buffers=_buffers(parameters, stage, width, sharding) + parameters.widened * width,
    )


def _gradients(trained: int, stage: int, sharding: Sharding) -> int:
    if stage <= 1:
        # In float32, stage 1 adds up copies of what the backward pass leaves.
        return trained * _FLOAT32 * (2 if stage == 1 and sharding.float32 else 1)
    # Stage 3 has them twice: as they are reduced, and as the update takes them.
    width = 12 if stage == 3 and not sharding.float32 else _FLOAT32
    return _per(trained * width, sharding.ranks)


def _buffers(parameters: Parameters, stage: int, width: int, sharding: Sharding) -> int:
    if sharding.engine == "fsdp2":
        # Gradients of one block as they come, and of two in float32 on their way.
        return (width + 2 * _FLOAT32) * parameters.largest_block
    bucket = min(ZERO_BUCKET, parameters.trained)
    # Two buckets, and one in float32 on its way. Stage 1 in bfloat16 reduces its float32 gradients where they are.
    reduced = bucket * (2 * width + _FLOAT32) if stage >= 2 or (stage == 1 and sharding.float32) else 0
    return reduced + (min(ZERO_LIVE, parameters.trained) * width if stage == 3 else 0)


def _per(amount: int, ranks: int) -> int:
    return -(-amount // ranks)
