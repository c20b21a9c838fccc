"""What a stage costs beside its steps: starts, checkpoints and failures. Modelled; every number can be given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_api.schema import ApiModel

FAILURES_PER_1000_GPU_DAYS: Final = 0.47
"""Unexpected interruptions: 419 in 54 days on 16,384 H100 (Llama 3, arXiv 2407.21783). Rented nodes may do worse."""
START_SECONDS: Final = 180.0
"""From the pods of a world to its first step at 11B: image, weights, first compilation. Assumed."""
COPY_BYTES_PER_SECOND: Final = 50e9
"""From a GPU to pinned memory: the part of a checkpoint for which training stands still. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Interruptions:
    """How often a run is interrupted, and how long a start takes."""

    per_1000_gpu_days: float = FAILURES_PER_1000_GPU_DAYS
    start_seconds: float = START_SECONDS


class Overheads(ApiModel):
    """GPU-hours of a stage beside its steps."""

    starts: float
    """The first world of the stage comes up."""
    checkpoints: float
    """Training stands still while state is copied, for checkpoints and for the memory of other nodes."""
    failures: float
    """Steps that are done again, and the starts after them."""
    expected_failures: float
    """How many are expected."""
    state_bytes: float
    """Of one checkpoint."""

    @property
    def gpu_hours(self) -> float:
        """All of them."""
        return self.starts + self.checkpoints + self.failures


def overheads(
    policy: CheckpointPolicy,
    interruptions: Interruptions,
    *,
    gpus: int,
    steps: int,
    seconds_per_step: float,
    state_bytes: float,
) -> Overheads:
    """GPU-hours of one stage beside its steps.

    Args:
        policy: when state is saved.
        interruptions: how often training breaks off.
        gpus: held by the stage.
        steps: of the stage.
        seconds_per_step: of one of them.
        state_bytes: of one checkpoint.
    """
    busy = steps * seconds_per_step
    saved = min(policy.every_steps * seconds_per_step, policy.every_seconds or busy, busy)
    times, interval = max(1.0, busy / saved), saved
    if policy.peer_copies:
        interval = min(saved, policy.peer_copies.every_steps * seconds_per_step)
        times += steps / policy.peer_copies.every_steps
    copies = times * state_bytes / gpus / COPY_BYTES_PER_SECOND
    expected = interruptions.per_1000_gpu_days / 1000 * gpus * busy / 86_400
    # A failure comes at any time of the interval alike, so half of it is done again. One node at a time is lost, so the
    # copies of its state in the next node's memory count.
    lost = expected * (interval / 2 + interruptions.start_seconds)
    hours = gpus / 3600
    return Overheads(
        starts=interruptions.start_seconds * hours,
        checkpoints=copies * hours,
        failures=lost * hours,
        expected_failures=expected,
        state_bytes=state_bytes,
    )
