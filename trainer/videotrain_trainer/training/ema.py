"""A moving average of the weights, kept in float32 and sharded like the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_at(decay: float, step: int) -> float:
    """Decay after an optimizer step (1-based): min(decay, (1 + step) / (10 + step)).

    A short run would otherwise export mostly the random weights that it started from.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(averages: Sequence[Tensor], masters: Sequence[Tensor], decay: float) -> None:
    """Move each average towards its master weights by 1 - decay, in place; after every optimizer step."""
    torch._foreach_lerp_(list(averages), [master.detach() for master in masters], 1.0 - decay)
