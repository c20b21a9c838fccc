"""The loss on held-out samples, at fixed times and with fixed noise, the same in every world.

A stage shows with it what the noisy training loss hides: two checkpoints are compared on the same questions. Samples
are shared over the ranks; all ranks make equally many forward passes, because ZeRO stage 3 gathers weights in each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from videotrain_trainer.parallel.peers import WorldPeers


@dataclass(frozen=True, kw_only=True)
class ValidationLosses:
    """Means over the held-out samples, equal on all ranks."""

    samples: int
    mean: float
    by_bucket: dict[str, float]
    times: list[float]
    by_time: list[float]


@runtime_checkable
class Validated(Protocol):
    """An objective that holds samples out."""

    @property
    def validate_every(self) -> int | None:
        """Steps between validations; None for none."""

    def validate(self, model: Callable[..., Any], peers: WorldPeers) -> ValidationLosses:
        """Loss of the model on the held-out samples. Collective."""


def spread(samples: int, rank: int, size: int) -> list[int]:
    """Numbers of the samples that a rank computes, equally many on all ranks: the last ones may come twice."""
    rounds = -(-samples // size)
    return [min(turn * size + rank, samples - 1) for turn in range(rounds)]


def spread_over_groups(degrees: Sequence[int], rank: int, size: int) -> list[int]:
    """Numbers of the samples that a rank computes, alone or with the ranks of its group, one degree after another.

    Args:
        degrees: for every sample, ranks that share it; each divides the world.
        rank: of this process.
        size: of the world.
    """
    numbers: list[int] = []
    for degree in sorted(set(degrees)):
        alike = [number for number, other in enumerate(degrees) if other == degree]
        numbers += [alike[place] for place in spread(len(alike), rank // degree, size // degree)]
    return numbers


def times_of(count: int) -> list[float]:
    """Evenly spaced times in (0, 1), the middles of equal parts."""
    return [(index + 0.5) / count for index in range(count)]


@torch.no_grad()
def measure(
    losses: Callable[[int, float], Tensor],
    buckets: Sequence[str],
    times: list[float],
    numbers: Sequence[int],
    peers: WorldPeers,
) -> ValidationLosses:
    """Losses of all samples at all times, put together from all ranks. Collective.

    Args:
        losses: (place in `numbers`, time) to the loss of that sample, a scalar.
        buckets: of all samples.
        times: before the shift.
        numbers: samples of this rank, as `spread` gives them.
        peers: the world.
    """
    width = len(times)
    row = [0.0] * (len(buckets) * width)
    places = [(place, index) for place in range(len(numbers)) for index in range(width)]
    found = torch.stack([losses(place, times[index]) for place, index in places]).tolist()
    for (place, index), loss in zip(places, found, strict=True):
        row[numbers[place] * width + index] = loss
    # A sample that came twice has the same loss on both ranks; the greatest of its values, all others being 0, is it.
    table = peers.table(row).amax(dim=0).view(len(buckets), width)
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for bucket, loss in zip(buckets, table.mean(dim=1).tolist(), strict=True):
        groups[bucket].append(loss)
    return ValidationLosses(
        samples=len(buckets),
        mean=float(table.mean()),
        by_bucket={name: sum(found) / len(found) for name, found in sorted(groups.items())},
        times=times,
        by_time=table.mean(dim=0).tolist(),
    )
