"""Which micro-batches of a step a rank runs, and how their losses are weighed."""

from __future__ import annotations


def micro_batches_of(group: int, groups: int, micro_batches: int) -> list[int]:
    """Micro-batches of one data-parallel group: every `groups`-th, so that counts differ by at most one."""
    return list(range(group, micro_batches, groups))


def loss_scale(groups: int, micro_batches: int) -> float:
    """Factor on each micro-batch's mean loss.

    The engine averages gradients over the ranks; with this factor the result is the mean over all micro-batches,
    however unevenly the ranks share them. Ranks that split a sequence each count their own tokens' mean, so only the
    number of groups matters.
    """
    return groups / micro_batches
