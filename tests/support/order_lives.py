"""Lives of a run whose worlds are killed and resized at random, of an order of samples alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from videotrain_trainer.data.sample_order import OrderPlan, OrderState

Ids = list[tuple[str, int]]
"""Bucket and element of each sample of a step."""


def _as_it_is(plan: OrderPlan, _: OrderState) -> OrderPlan:
    return plan


def lived(
    start: OrderState,
    opened: Callable[[OrderState], OrderPlan],
    steps: int,
    chance: random.Random,
    take_in: Callable[[OrderPlan, OrderState], OrderPlan] = _as_it_is,
) -> tuple[list[Ids], int]:
    """What made it into checkpoints, step by step, and how often the run was begun.

    Args:
        start: of the order.
        opened: the order as a new world has it, which goes on from a state that was stored.
        steps: of the run.
        chance: decides when worlds are killed, how large they are and when they store.
        take_in: the order from a state on, with what was appended until then.
    """
    kept: list[Ids] = []
    stored, lives = json.dumps(start.to_json()), 0
    while len(kept) < steps:
        lives += 1
        state = OrderState.from_json(json.loads(stored))
        plan = opened(state)
        state = plan.adopt(state)
        plan.check(state)
        world, since_save = chance.randint(1, 9), []
        dies_after, saves_every = chance.randint(1, 25), chance.randint(1, 8)
        for _ in range(min(dies_after, steps - len(kept))):
            plan = take_in(plan, state)
            state = plan.adopt(state)
            plan.check(state)
            order = plan.step(state)
            # Every rank looks up its own micro-batches, in any order; together they make the step.
            shares = {
                n: order.micro_batches[n] for rank in range(world) for n in range(rank, len(order.micro_batches), world)
            }
            since_save.append([(order.bucket, i) for n in range(len(order.micro_batches)) for i in shares[n]])
            state = plan.advance(state)
            if state.step % saves_every == 0 or state.step == steps:
                kept += since_save
                since_save, stored = [], json.dumps(state.to_json())
    return kept, lives
