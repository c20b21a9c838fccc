from __future__ import annotations

import pyarrow as pa
import pytest

from videotrain_trainer.data.order import OrderBucket, OrderPlan
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.training.order_check import RankEvidence, order_lines
from videotrain_trainer.training.step import SlotIds

PLAN = OrderPlan((OrderBucket("b", 6, 2),), seed=1, slots=2)
DATA = TrainingSet(
    uri="file:///none",
    table=pa.table({"uid": [f"u{number}" for number in range(6)]}),
    members=(tuple(range(6)),),
    plan=PLAN,
)


@pytest.fixture
def steps():
    state = PLAN.start()
    return [PLAN.step(state), PLAN.step(PLAN.advance(state))]


def planned(order, slot):
    return SlotIds(slot, [f"u{index}" for index in order.slots[slot]])


def test_lines_hold_the_ids_in_slot_order_whichever_rank_had_them(steps):
    ranks = [RankEvidence([[planned(order, slot)] for order in steps], frozenset()) for slot in (1, 0)]
    lines = order_lines(DATA, steps, ranks)
    assert [line.step for line in lines] == [1, 2]
    assert [line.ids for line in lines] == [[f"u{i}" for slot in order.slots for i in slot] for order in steps]


def test_a_sample_that_was_not_planned_is_refused(steps):
    wrong = SlotIds(0, list(reversed(planned(steps[0], 0).ids)))
    with pytest.raises(TrainerError, match="step 1, slot 0: trained on sample"):
        order_lines(DATA, steps[:1], [RankEvidence([[wrong, planned(steps[0], 1)]], frozenset())])


def test_a_slot_that_nobody_or_two_ranks_ran_is_refused(steps):
    order = steps[0]
    for slots in ([0], [0, 0, 1]):
        evidence = RankEvidence([[planned(order, slot) for slot in slots]], frozenset())
        with pytest.raises(TrainerError, match="instead of each one once"):
            order_lines(DATA, [order], [evidence])


def test_a_stand_in_is_accepted_only_for_a_damaged_sample(steps):
    order = steps[0]
    damaged, kept = planned(order, 0).ids
    stand_in = f"u{PLAN.spare(0, order.positions[0][0], 1)}"
    trained = [[SlotIds(0, [stand_in, kept]), planned(order, 1)]]
    assert order_lines(DATA, [order], [RankEvidence(trained, frozenset({damaged}))])[0].ids[0] == stand_in
    if stand_in != damaged:
        with pytest.raises(TrainerError, match="trained on sample"):
            order_lines(DATA, [order], [RankEvidence(trained, frozenset())])
