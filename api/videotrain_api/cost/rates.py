"""What GPUs and their kernels are taken to deliver in training. Nothing here was measured by this project on a GPU.

Each number is quoted (published by others for one H100 or H200 SXM) or assumed, and has a low and a high beside it, so
that a forecast is a band and not a hope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from videotrain_api.resource.stages import AttentionKernel

BandName = Literal["low", "mid", "high"]


def _attention(
    cudnn: tuple[float, float], flash2: tuple[float, float], flash3: tuple[float, float], math: float
) -> Mapping[AttentionKernel, tuple[float, float]]:
    """By kernel: `auto` is cuDNN's, torch's own is FlashAttention 2, and 4 is taken to be as fast as 3."""
    return {
        "auto": cudnn,
        "cudnn": cudnn,
        "flash": flash2,
        "flash2": flash2,
        "flash3": flash3,
        "flash4": flash3,
        "math": (math, math),
    }


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of one GPU in a run of many."""

    products: float
    """Matrix products of the blocks in bf16, FLOP/s. Mid is assumed: 8192 x 8192 x 8192 reaches 788e12 (quoted)."""
    attention: Mapping[AttentionKernel, tuple[float, float]]
    """Forward and backward by kernel, FLOP/s, the backward pass counted as 2.5 forward ones. Quoted."""
    memory: float
    """Of elementwise kernels, bytes/s. Assumed; a copy reaches 4.3e12 on an H200."""
    exchange: float
    """Of an all-to-all among GPUs of one node, bytes sent per GPU and second. Assumed."""
    reduce_in_node: float
    """Of reductions and gathers within one node, bytes per GPU and second. Assumed."""
    reduce: float
    """The same across nodes with eight 400 Gbit/s links. Assumed."""
    idle: float
    """Seconds between two micro-batches. Assumed."""
    share: float
    """Share of the modelled rate that is left for what the model does not see: clocks, allocator, jitter. Assumed."""


MID: Final = Rates(
    products=700e12,
    attention=_attention((600e12, 516e12), (370e12, 322e12), (648e12, 561e12), 40e12),
    memory=3.9e12,
    exchange=300e9,
    reduce_in_node=350e9,
    reduce=330e9,
    idle=0.004,
    share=0.90,
)
LOW: Final = Rates(
    products=620e12,
    attention=_attention((520e12, 430e12), (330e12, 280e12), (560e12, 470e12), 20e12),
    memory=3.6e12,
    exchange=220e9,
    reduce_in_node=280e9,
    reduce=220e9,
    idle=0.030,
    share=0.85,
)
HIGH: Final = Rates(
    products=740e12,
    attention=_attention((631e12, 540e12), (370e12, 322e12), (700e12, 600e12), 60e12),
    memory=4.1e12,
    exchange=350e9,
    reduce_in_node=380e9,
    reduce=390e9,
    idle=0.002,
    share=0.95,
)
BANDS: Final[Mapping[BandName, Rates]] = {"low": LOW, "mid": MID, "high": HIGH}
ASSUMED_UTILISATION: Final[Mapping[BandName, float]] = {"low": 0.15, "mid": 0.25, "high": 0.40}
"""Model FLOPs utilisation of what has no model of its kernels: convolutions of an autoencoder, sampling. Assumed."""
EIGHT_BIT: Final = 1.35
"""How much faster matrix products are with rows in FP8, conversions included. Assumed; vendors quote up to 2."""
