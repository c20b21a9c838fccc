"""Sources with weights: each exactly once per epoch of its own, in its share of each window, whatever worlds do."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.order_lives import lived

from videotrain_trainer.data.interleaving import Interleaving
from videotrain_trainer.data.sample_order import OrderBucket, OrderPhase, OrderPlan, StepOrder

NAMES = ("film", "game", "own", "stock", "web")


def _plan(parts, phases, seed=3, micro_batches=6):
    buckets = tuple(
        OrderBucket(f"256px/{n}f", sum(sizes), 1 + n % 3, parts=tuple(sizes)) for n, sizes in enumerate(parts)
    )
    return OrderPlan(buckets, seed, micro_batches, "set", NAMES[: len(parts[0])], tuple(phases))


def five_sources(chance: random.Random) -> OrderPlan:
    """Five sources of very different sizes in some buckets, whose weights change twice."""
    parts = [[chance.choice((0, 1, 3, 20, 90)) for _ in NAMES] for _ in range(chance.randint(1, 4))]
    parts[0] = [max(1, size) for size in parts[0]]
    weights = [tuple(chance.choice((0.1, 0.3, 1, 2.5, 7)) for _ in NAMES) for _ in range(3)]
    phases = (OrderPhase(weights[0], 20), OrderPhase((*weights[1][:4], 0.0), 45), OrderPhase(weights[2]))
    return _plan(parts, phases, seed=chance.getrandbits(53), micro_batches=chance.randint(1, 12))


def ids_of(order: StepOrder) -> list[tuple[str, int]]:
    return [(order.bucket, index) for batch in order.micro_batches for index in batch]


def test_fifty_random_histories_of_kills_and_resizes_lose_nothing_repeat_nothing_and_keep_the_order():
    restarts = 0
    for history in range(50):
        chance = random.Random(history)
        plan = five_sources(chance)
        expected = [ids_of(order) for order in islice(plan.walk(plan.start()), 70)]
        found, lives = lived(plan.start(), lambda _, plan=plan: replace(plan), 70, chance)
        assert found == expected, history
        restarts += lives - 1
        for number, bucket in enumerate(plan.buckets):
            firsts = [sum(bucket.parts[:k]) for k in range(6)]
            for k, size in enumerate(bucket.parts):
                stream = [
                    i - firsts[k]
                    for step in found
                    for b, i in step
                    if b == bucket.name and firsts[k] <= i < firsts[k + 1]
                ]
                for begin in range(0, len(stream), max(1, size)):
                    epoch = stream[begin : begin + size]
                    assert len(set(epoch)) == len(epoch), (history, number, k, "repeated within an epoch")
                    assert len(epoch) == size or begin + size > len(stream), (history, number, k, "lost")
    assert restarts > 200


@settings(max_examples=100)
@given(rates=st.lists(st.fractions(0, 50), min_size=1, max_size=9).filter(any), start=st.integers(0, 10**12))
def test_an_interleaving_gives_every_source_its_share_of_every_window_to_rounding(rates, start):
    mixed, total = Interleaving(tuple(rates)), sum(rates)
    halvings = (sum(rate > 0 for rate in rates) - 1).bit_length()
    before = mixed.counts(start)
    seen = Counter()
    for length in range(60):
        for rate, one, count in zip(rates, before, (seen[k] for k in range(len(rates))), strict=True):
            assert abs(one + count - rate / total * (start + length)) <= Fraction(halvings, 2)
        source, place = mixed.locate(start + length)
        assert place == before[source] + seen[source], "each source's samples come one after the other"
        seen[source] += 1
        assert mixed.counts(start + length + 1) == tuple(one + seen[k] for k, one in enumerate(before))


@pytest.mark.parametrize("window", [40, 137, 400])
def test_any_window_of_steps_has_the_shares_of_the_weights_to_a_step_per_bucket(window):
    weights = (0.1, 0.3, 1.0, 2.5, 7.0)
    plan = _plan([[9, 40, 800, 3, 70], [0, 50, 1, 900, 5], [77, 1, 30, 30, 4000]], [OrderPhase(weights)])
    steps = [
        Counter(plan.source_of(order.bucket_index, i) for _, i in ids_of(order))
        for order in islice(plan.walk(plan.start()), 900)
    ]
    slack = sum(2 * plan.micro_batches * bucket.batch_size for bucket in plan.buckets)
    for first in range(0, 900 - window, 23):
        counts = sum(steps[first : first + window], Counter())
        for source, weight in enumerate(weights):
            assert abs(counts[source] - counts.total() * weight / sum(weights)) <= slack


def test_buckets_of_a_source_come_to_the_end_of_an_epoch_together():
    plan = _plan([[300, 60], [100, 900]], [OrderPhase((3.0, 1.0))])
    state = plan.start()
    for _ in range(800):
        state = plan.advance(state)
    for source in range(2):
        epochs = [plan.taken(state, b)[source] / plan.buckets[b].parts[source] for b in range(2)]
        assert abs(epochs[0] - epochs[1]) < 0.2 and min(epochs) > 1


def test_a_change_of_weights_takes_effect_with_the_step_after_and_goes_on_in_the_same_epochs():
    plan = _plan([[200, 200]], [OrderPhase((1.0, 0.0), 10), OrderPhase((0.0, 1.0), 20), OrderPhase((1.0, 3.0))])
    sources = [{plan.source_of(0, i) for _, i in ids_of(order)} for order in islice(plan.walk(plan.start()), 40)]
    assert sources[:10] == [{0}] * 10 and sources[10:20] == [{1}] * 10 and {0, 1} in sources[20:]
    first = [i for order in islice(plan.walk(plan.start()), 40) for _, i in ids_of(order) if i < 200]
    assert len(set(first[:200])) == len(first[:200]), "the epoch of the first source goes on where it was left"


def test_a_source_without_samples_in_a_bucket_and_a_bucket_without_weight_are_never_visited():
    plan = _plan([[50, 0], [0, 50]], [OrderPhase((1.0, 0.0))])
    assert {order.bucket for order in islice(plan.walk(plan.start()), 60)} == {"256px/0f"}


def test_the_fingerprint_changes_with_sources_and_weights_and_not_with_the_world():
    plan = _plan([[5, 7]], [OrderPhase((1.0, 2.0))])
    others = [
        replace(plan, phases=(OrderPhase((1.0, 3.0)),)),
        replace(plan, sources=("film", "other")),
        _plan([[6, 6]], [OrderPhase((1.0, 2.0))]),
        OrderPlan((OrderBucket("256px/0f", 12, 1),), 3, 6, "set"),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert replace(plan, micro_batches=3).fingerprint == plan.fingerprint
    for other in others:
        with pytest.raises(ValueError, match="other sources or weights"):
            other.check(plan.start())


def test_without_sources_order_fingerprint_and_state_are_those_of_ever():
    """The numbers are of the order before there were sources: a stage that has begun goes on."""
    buckets = (OrderBucket("256px/33f/16:9", 70, 3), OrderBucket("256px/1f/1:1", 41, 5, micro_batches=2))
    plan = OrderPlan(buckets, seed=11, micro_batches=4, manifest="abcd")
    state = plan.start()
    steps = []
    for _ in range(30):
        steps.append(ids_of(plan.step(state)))
        state = plan.advance(state)
    assert state.to_json() == RECORDED_STATE
    assert [index for step in steps[:3] for _, index in step] == RECORDED_FIRST
    assert sum(pos * index for pos, (_, index) in enumerate(one for step in steps for one in step)) == RECORDED_SUM


RECORDED_STATE = {"step": 30, "cursors": [216, 120], "fingerprint": "a385cbbc4de3ade0", "version": 1}
RECORDED_FIRST = [
    31,
    16,
    5,
    18,
    39,
    2,
    23,
    15,
    35,
    40,
    11,
    69,
    56,
    5,
    51,
    15,
    34,
    12,
    53,
    10,
    42,
    26,
    9,
    38,
    0,
    7,
    33,
    50,
    65,
    47,
    31,
    35,
    29,
    27,
]
RECORDED_SUM = 1649214


def test_a_stand_in_is_of_the_source_of_the_damaged_sample():
    plan = _plan([[4, 30, 2]], [OrderPhase((1.0, 1.0, 0.0))])
    assert {plan.spare(0, 7, 99, attempt) for attempt in range(1, 31)} == set(range(4, 34))
    assert {plan.spare(0, 0, 5, attempt) for attempt in range(1, 9)} == set(range(4))


def test_the_only_sample_of_a_source_has_stand_ins_of_others():
    plan = _plan([[1, 40]], [OrderPhase((1.0, 1.0))])
    found = {plan.spare(0, 0, 7, attempt) for attempt in range(1, 6)}
    assert len(found - {0}) >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phases": ()}, "sources have weights, and nothing else has"),
        ({"phases": (OrderPhase((1.0,)),)}, "must have a weight of at least 0 for each"),
        ({"phases": (OrderPhase((1.0, -1.0)),)}, "must have a weight of at least 0 for each"),
        ({"phases": (OrderPhase((0.0, 0.0)),)}, "leaves no sample"),
        ({"buckets": (OrderBucket("b", 12, 1),)}, "must have parts of 2 sources that sum to its size"),
        ({"buckets": (OrderBucket("b", 12, 1, parts=(5, 6)),)}, "must have parts of 2 sources that sum to its size"),
    ],
)
def test_impossible_mixes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(_plan([[5, 7]], [OrderPhase((1.0, 2.0))]), **change)


def test_neighbours_of_a_source_are_shuffled():
    plan = _plan([[1000, 1000]], [OrderPhase((1.0, 1.0))])
    found = [plan.index_at(0, position) for position in range(2000)]
    firsts = [index for index in found if index < 1000]
    assert sum(abs(a - b) == 1 for a, b in pairwise(firsts)) < 15
