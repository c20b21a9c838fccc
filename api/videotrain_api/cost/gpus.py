"""What GPUs can do at most, and what share of it a run gets: the one place that both is worked out.

The agents' series and the run's status show the same number, since the agent computes it and the operator passes it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PEAK_FLOPS: Final = 989e12
"""Dense bf16 peak of one H100/H200 SXM, FLOP/s (vendor figure). Forecasts assume such GPUs."""
KNOWN: Final = {"H100 80GB HBM3": PEAK_FLOPS, "H200": PEAK_FLOPS}
"""Dense bf16 peak by a part of the name that the driver gives the GPU."""


def unknown(kinds: Sequence[str]) -> list[str]:
    """Those of the kinds whose peak is not known."""
    return [kind for kind in kinds if not any(part in kind for part in KNOWN)]


def peak_flops(kinds: Sequence[str]) -> float | None:
    """Dense bf16 peak of the slowest of these GPUs, FLOP/s; None if there is none, or one of a kind that is not known.

    Args:
        kinds: names as the driver gives them, such as `NVIDIA H200`.
    """
    if unknown(kinds):
        return None
    return min((peak for kind in kinds for part, peak in KNOWN.items() if part in kind), default=None)


def utilisation(flops_per_second: float | None, gpus: int | None, kinds: Sequence[str]) -> float | None:
    """Model FLOPs utilisation, such as 0.41; None if nothing was computed yet or the GPUs' peak is not known.

    Args:
        flops_per_second: model FLOPs of the whole world, without recomputation.
        gpus: of the whole world.
        kinds: names of its GPUs as the driver gives them.
    """
    peak = peak_flops(kinds)
    return flops_per_second / (gpus * peak) if peak and gpus and flops_per_second else None
