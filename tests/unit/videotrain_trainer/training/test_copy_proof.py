"""The order of steps that only copies hold comes back whole, whatever was stored and however often worlds end."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.training.copy_proof import ProofLog, lines_since
from videotrain_trainer.training.order_check import RankSteps, order_lines
from videotrain_trainer.training.step import MicroBatchIds

PLAN = OrderPlan((OrderBucket("b", 7, 2),), seed=1, micro_batches=3)


class Numbered(TrainingSet):
    """Samples that are named by their place."""

    def uid(self, bucket, index):
        return f"u{index}"


DATA = Numbered(uri="file:///none", plan=PLAN, degrees=(1,))


def trained(order, rank, size):
    return [
        MicroBatchIds(number, [f"u{index}" for index in order.micro_batches[number]]) for number in range(rank, 3, size)
    ]


def state_after(step):
    state = PLAN.start()
    for _ in range(step):
        state = PLAN.advance(state)
    return state


LIVES = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=5,
)
"""Worlds one after the other: size, steps that it makes, and steps after which a checkpoint is complete, if ever."""


@given(LIVES)
def test_the_lines_behind_a_checkpoint_are_those_of_the_plan(lives):
    stored, step, lines = 0, 0, []
    for size, steps, save_after in lives:
        # Ranks learn of a complete checkpoint at different times; here only rank 0 has.
        logs = [ProofLog(stored, step, lines if rank == 0 else []) for rank in range(size)]
        begun = step
        for number in range(steps):
            order = PLAN.step(state_after(step))
            for rank, log in enumerate(logs):
                log.add(trained(order, rank, size))
            step += 1
            if number + 1 == save_after:
                stored = begun + save_after
                logs[0].forget(stored)
        assert all(log.after <= stored for log in logs)
        told = [json.loads(json.dumps(log.told(frozenset()))) for log in logs]
        lines = lines_since(DATA, state_after(stored), step, told)
        orders = [PLAN.step(state_after(number)) for number in range(stored, step)]
        expected = order_lines(DATA, orders, [RankSteps([trained(order, 0, 1) for order in orders], frozenset())])
        assert lines == expected


def test_what_is_stored_is_forgotten():
    log = ProofLog(0, 0, [])
    for number in range(4):
        log.add(trained(PLAN.step(state_after(number)), 0, 1))
    log.forget(3)
    told = log.told(frozenset({"u1"}))
    assert (log.after, told["trained_after"], len(told["rank"]["trained"]), told["rank"]["skipped"]) == (
        3,
        3,
        1,
        ["u1"],
    )
    log.forget(2)
    assert log.after == 3
