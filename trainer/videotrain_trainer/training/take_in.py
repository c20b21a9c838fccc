"""Data that is appended while a stage trains: looked for and taken in between two steps, by all ranks alike."""

from __future__ import annotations

import logging
from typing import Final

from pydantic import TypeAdapter

from videotrain_trainer.data.sample_order import AppendedSet
from videotrain_trainer.training.setup import TrainingRun, shares_of
from videotrain_trainer.training.step import Grows

log = logging.getLogger(__name__)
_SETS: Final = TypeAdapter(list[AppendedSet])


def take_in(run: TrainingRun) -> None:
    """Before the step behind `run.state`: what was appended by then, if the stage looks for it here. Collective.

    Raises:
        TrainerError: a set cannot be read that was decided for.
    """
    objective, state = run.objective, run.state
    if not isinstance(objective, Grows) or objective.appended_every is None or state.step % objective.appended_every:
        return
    found = None
    if run.peers.rank == 0:
        found = objective.decide(
            state.step, state.appended, lambda error: run.context.reporter.housekeeping("append", error)
        )
    new = run.peers.from_first(_SETS, found)
    if not new:
        return
    before = sum(bucket.size for bucket in objective.data.plan.buckets)
    objective.take_in([*state.appended, *new])
    run.state = objective.data.plan.adopt(state)
    shares = shares_of(run.context.world, objective.data)
    run.stepper.share_as(shares)
    run.loader.go_on(objective.data, run.state, [share.micro_batches for share in shares])
    if run.peers.rank == 0:
        more = sum(bucket.size for bucket in objective.data.plan.buckets) - before
        names = ", ".join(f"{one.name} from {one.uri}" for one in new)
        log.info("from step %d on with %d more samples: %s", state.step + 1, more, names)
