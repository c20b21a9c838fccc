"""Which micro-batches of a step a rank runs, and how their losses are weighed.

Ranks that share a sequence are neighbours and form a group: with degree P ranks 0 to P - 1 are the first one. All ranks
of a group run the same micro-batches. A step holds samples of one bucket, so all ranks have one degree at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


def micro_batches_of(group: int, groups: int, micro_batches: int) -> list[int]:
    """Micro-batches of one data-parallel group: every `groups`-th, so that counts differ by at most one."""
    return list(range(group, micro_batches, groups))


def loss_scale(groups: int, micro_batches: int) -> float:
    """Factor on each micro-batch's mean loss.

    The engine averages gradients over the ranks; with this factor the result is the mean over all micro-batches,
    however unevenly the groups share them. The losses of a group's ranks have the loss of the micro-batch as their
    mean, so only the number of groups matters.
    """
    return groups / micro_batches


class Turn(NamedTuple):
    """One forward and backward pass of a rank."""

    micro_batch: int
    scale: float
    """Factor on its loss; 0 for one that is run once more, only because others have one more."""
    last: bool
    """No other comes before the update."""


@dataclass(frozen=True)
class Share:
    """What one rank does in a step of a bucket."""

    micro_batches: list[int]
    degree: int
    """Ranks that share each of them."""
    scale: float
    """Factor on each loss."""
    most: int
    """Micro-batches of the group that has most; others have one less at most."""
    leads: bool
    """This rank speaks for its group, where what the group did is counted once."""

    def turns(self, in_step: bool) -> Iterator[Turn]:
        """What the rank runs in a step.

        Args:
            in_step: passes communicate, so every rank must run equally many. Where other groups have one micro-batch
                more, the last one is run once more at no weight, in a time in which this rank would be idle.
        """
        rounds = self.most if in_step else len(self.micro_batches)
        for number in range(rounds):
            real = number < len(self.micro_batches)
            micro_batch = self.micro_batches[number if real else -1]
            yield Turn(micro_batch, self.scale if real else 0.0, number == rounds - 1)


def share_of(rank: int, size: int, micro_batches: int, degree: int) -> Share:
    """The share of a rank in a world of `size`, of a bucket with so many micro-batches per step."""
    groups = size // degree
    return Share(
        micro_batches=micro_batches_of(rank // degree, groups, micro_batches),
        degree=degree,
        scale=loss_scale(groups, micro_batches),
        most=-(-micro_batches // groups),
        leads=rank % degree == 0,
    )
