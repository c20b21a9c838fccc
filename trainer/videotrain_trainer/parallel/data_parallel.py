"""Which micro-batches of a step a rank runs, and how their losses are weighed."""

from __future__ import annotations

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.errors import ConfigError


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


def check_layout(layout: ParallelLayout, world_size: int) -> None:
    """Refuse what this world cannot do.

    Raises:
        ConfigError: names the field, the value and what is allowed.
    """
    if layout.context_parallel != 1:
        raise ConfigError(
            f"parallel.contextParallel: {layout.context_parallel} is not available in this version of the "
            "trainer; use 1"
        )
    if layout.micro_batches_per_step < world_size:
        raise ConfigError(
            f"parallel.microBatchesPerStep: {layout.micro_batches_per_step} micro-batches cannot occupy {world_size} "
            f"worker processes; allowed: {world_size} or more, or fewer nodes in spec.nodes"
        )
    if layout.zero_stage >= 2 and layout.micro_batches_per_step % world_size:
        raise ConfigError(
            f"parallel.zeroStage: {layout.zero_stage} needs microBatchesPerStep to be a multiple of the {world_size} "
            f"worker processes, it is {layout.micro_batches_per_step}; use zeroStage 1 or limit spec.nodes.allowed"
        )
