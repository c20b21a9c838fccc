"""Which slots of a step a rank runs, and how their losses are weighed."""

from __future__ import annotations

from videotrain_api.stages import ParallelLayout
from videotrain_trainer.errors import ConfigError


def slots_of(group: int, groups: int, slots: int) -> list[int]:
    """Slots of one data-parallel group: every `groups`-th, so that counts differ by at most one."""
    return list(range(group, slots, groups))


def loss_scale(groups: int, slots: int) -> float:
    """Factor on each slot's mean loss.

    The engine averages gradients over the ranks; with this factor the result is the mean over all slots, however
    unevenly the ranks share them. Ranks that split a sequence each count their own tokens' mean, so only the number of
    groups matters.
    """
    return groups / slots


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
    if layout.slots_per_step < world_size:
        raise ConfigError(
            f"parallel.slotsPerStep: {layout.slots_per_step} slots cannot occupy {world_size} worker processes; "
            f"allowed: {world_size} or more, or fewer nodes in spec.nodes"
        )
    if layout.zero_stage >= 2 and layout.slots_per_step % world_size:
        raise ConfigError(
            f"parallel.zeroStage: {layout.zero_stage} needs slotsPerStep to be a multiple of the {world_size} worker "
            f"processes, it is {layout.slots_per_step}; use zeroStage 1 or limit spec.nodes.allowed"
        )
