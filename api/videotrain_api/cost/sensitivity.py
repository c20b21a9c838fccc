"""How much a forecast depends on each of the rates that it takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from videotrain_api.cost.forecast import MID as MID_BAND
from videotrain_api.cost.forecast import forecast
from videotrain_api.cost.rates import MID, Rates
from videotrain_api.money import format_micros
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ApiModel


class Change(ApiModel):
    """A forecast with one thing changed."""

    what: str
    cost: str
    """Of all steps of the run, in its currency."""
    ratio: float
    """To the cost at the mid rates."""


def _attention(forward: float, backward: float) -> Rates:
    return replace(MID, attention={**MID.attention, "auto": (forward, backward), "cudnn": (forward, backward)})


CHANGES: Final[Mapping[str, Rates]] = {
    "matrix products at 620 instead of 700 TFLOP/s": replace(MID, products=620e12),
    "attention at 520/430 instead of 600/516 TFLOP/s": _attention(520e12, 430e12),
    "both": replace(_attention(520e12, 430e12), products=620e12),
    "attention by FlashAttention 3, 648/561 TFLOP/s": _attention(648e12, 561e12),
    "elementwise kernels at 3.2 instead of 3.9 TB/s": replace(MID, memory=3.2e12),
    "reductions at 165 instead of 330 GB/s": replace(MID, reduce=165e9, reduce_in_node=175e9),
    "all-to-all at 150 instead of 300 GB/s": replace(MID, exchange=150e9),
    "50 instead of 4 ms between micro-batches": replace(MID, idle=0.05),
    "80 instead of 90 % of the modelled rate left": replace(MID, share=0.80),
}
"""Rates with one of them changed, by what it is."""


def sensitivity(run: VideoTrainingRun) -> list[Change]:
    """The cost of a run's steps with one rate changed at a time, everything modelled.

    Raises:
        ManifestError: a preset is unknown or incomplete.
    """
    found = {what: forecast(run, rates={MID_BAND: rates}).cost_micros for what, rates in CHANGES.items()}
    base = forecast(run, rates={MID_BAND: MID}).cost_micros
    return [Change(what=what, cost=format_micros(cost), ratio=cost / base) for what, cost in found.items() if base]
