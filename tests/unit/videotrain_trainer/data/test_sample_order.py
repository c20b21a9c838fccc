from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videotrain_trainer.data.sample_order import OrderBucket, OrderPlan, OrderState, permute, sample_seed


@st.composite
def plans(draw: st.DrawFn) -> OrderPlan:
    shapes = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=5))
    buckets = tuple(OrderBucket(f"b{i}", size, batch) for i, (size, batch) in enumerate(shapes))
    return OrderPlan(buckets, seed=draw(st.integers(0, 2**53)), micro_batches=draw(st.integers(1, 9)))


def consumed(plan: OrderPlan, state: OrderState, steps: int) -> tuple[list[tuple[int, int, int]], OrderState]:
    """(bucket, position, index) of all samples of so many steps, and the state after them."""
    seen = []
    for _ in range(steps):
        order = plan.step(state)
        for positions, indices in zip(order.positions, order.micro_batches, strict=True):
            seen += [(order.bucket_index, p, i) for p, i in zip(positions, indices, strict=True)]
        state = plan.advance(state)
    return seen, state


@settings(max_examples=60)
@given(plan=plans(), micro_batches=st.lists(st.integers(1, 12), min_size=1, max_size=6), every=st.integers(1, 7))
def test_every_sample_comes_exactly_once_per_bucket_epoch_however_often_the_micro_batches_change(
    plan, micro_batches, every
):
    state, seen = plan.start(), []
    for number in micro_batches * 4:
        plan = replace(plan, micro_batches=number)
        more, state = consumed(plan, state, every)
        seen += more
        state = OrderState.from_json(json.loads(json.dumps(state.to_json())))
        plan.check(state)
    for number, bucket in enumerate(plan.buckets):
        stream = [(position, index) for b, position, index in seen if b == number]
        assert [position for position, _ in stream] == list(range(state.cursors[number]))
        for epoch in range(state.cursors[number] // bucket.size):
            inside = [index for position, index in stream if position // bucket.size == epoch]
            assert sorted(inside) == list(range(bucket.size))


@settings(max_examples=40)
@given(plan=plans(), world=st.integers(1, 11), steps=st.integers(1, 12))
def test_ranks_of_any_world_together_train_on_the_same_micro_batches(plan, world, steps):
    for order in islice(plan.walk(plan.start()), steps):
        by_rank = {
            micro_batch: order.micro_batches[micro_batch]
            for rank in range(world)
            for micro_batch in range(rank, plan.micro_batches, world)
        }
        assert [by_rank[micro_batch] for micro_batch in range(plan.micro_batches)] == list(order.micro_batches)


@settings(max_examples=40)
@given(plan=plans(), before=st.integers(0, 20), after=st.integers(1, 20))
def test_resuming_from_a_saved_state_gives_the_steps_that_would_have_come(plan, before, after):
    uninterrupted, _ = consumed(plan, plan.start(), before + after)
    first, state = consumed(plan, plan.start(), before)
    fresh = OrderPlan(plan.buckets, plan.seed, plan.micro_batches)
    second, _ = consumed(fresh, OrderState.from_json(json.loads(json.dumps(state.to_json()))), after)
    assert first + second == uninterrupted


@given(size=st.integers(1, 3000), keys=st.tuples(*[st.integers(0, 2**64 - 1)] * 4))
def test_the_permutation_is_one_to_one_for_every_size(size, keys):
    assert sorted(permute(place, size, keys) for place in range(size)) == list(range(size))


def test_epochs_of_a_bucket_are_shuffled_differently_and_neighbours_part():
    plan = OrderPlan((OrderBucket("b", 1000, 1),), seed=3, micro_batches=1)
    first = [plan.index_at(0, position) for position in range(1000)]
    second = [plan.index_at(0, position) for position in range(1000, 2000)]
    assert first != second
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert sum(abs(a - b) == 1 for a, b in pairwise(first)) < 15


def test_buckets_are_visited_in_proportion_to_size_and_not_in_blocks():
    buckets = (OrderBucket("small", 100, 2), OrderBucket("large", 300, 2), OrderBucket("as large", 300, 2))
    plan = OrderPlan(buckets, seed=5, micro_batches=2)
    names = [order.bucket for order in islice(plan.walk(plan.start()), 700)]
    assert Counter(names)["large"] == pytest.approx(300, abs=3)
    assert Counter(names)["as large"] == pytest.approx(300, abs=3)
    longest = max(len(run) for run in "".join("s" if name == "small" else " " for name in names).split(" "))
    assert longest <= 2


def test_the_state_of_a_hundred_million_clips_in_many_buckets_is_below_16_kilobytes():
    buckets = tuple(OrderBucket(f"1024px/129f/2.39:1-{n}", 100_000_000 // 561, 12) for n in range(561))
    plan = OrderPlan(buckets, seed=2**53 - 1, micro_batches=224)
    state = OrderState(10**7, (10**10,) * 561, plan.fingerprint)
    assert len(json.dumps(state.to_json())) < 16 * 1024
    assert plan.step(state).step == 10**7 + 1


def test_the_state_of_another_data_set_or_seed_is_refused_and_of_other_micro_batches_is_not():
    buckets = (OrderBucket("b", 10, 2),)
    state = OrderPlan(buckets, 1, 4, "aaaa").start()
    OrderPlan(buckets, 1, 3, "aaaa").check(state)
    for other in (OrderPlan(buckets, 2, 4, "aaaa"), OrderPlan(buckets, 1, 4, "bbbb")):
        with pytest.raises(ValueError, match="another data set, seed or bucket table"):
            other.check(state)


def test_a_bucket_with_micro_batches_of_its_own_loses_and_repeats_nothing_when_they_change():
    buckets = (OrderBucket("own", 40, 2, micro_batches=5), OrderBucket("usual", 40, 2))
    plan = OrderPlan(buckets, seed=1, micro_batches=4)
    assert {(order.bucket, len(order.micro_batches)) for order in islice(plan.walk(plan.start()), 9)} == {
        ("own", 5),
        ("usual", 4),
    }
    before, state = consumed(plan, plan.start(), 5)
    # As many samples, otherwise cut: what a change of the degree of context parallelism asks for.
    other = replace(plan, buckets=(replace(buckets[0], batch_size=1, micro_batches=10), buckets[1]))
    assert other.fingerprint == plan.fingerprint
    assert consumed(other, state, 4)[0] == consumed(plan, state, 4)[0]
    assert before


def test_a_spare_depends_on_the_place_and_every_attempt_gives_another_one():
    plan = OrderPlan((OrderBucket("b", 50, 2),), seed=1, micro_batches=4)
    spares = [plan.spare(0, 3, 17, attempt) for attempt in range(1, 51)]
    assert sorted(spares) == list(range(50))
    assert spares == [replace(plan, micro_batches=7).spare(0, 9, 17, attempt) for attempt in range(1, 51)]
    assert plan.spare(0, 3, 18, 1) != spares[0] or plan.spare(0, 3, 18, 2) != spares[1]


def test_sample_seeds_differ_by_seed_bucket_and_position():
    seeds = {sample_seed(s, b, p) for s in range(3) for b in ("x", "y") for p in range(50)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("buckets", "micro_batches", "message"),
    [
        ((), 1, "there is none"),
        ((OrderBucket("b", 0, 1),), 1, "must be positive"),
        ((OrderBucket("b", 1, 1), OrderBucket("b", 2, 1)), 1, "unique"),
        ((OrderBucket("b", 1, 1),), 0, "micro-batches: 0"),
        ((OrderBucket("b", 1, 1, micro_batches=-1),), 1, "must be positive"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(buckets, micro_batches, message):
    with pytest.raises(ValueError, match=message):
        OrderPlan(buckets, 1, micro_batches)


def test_a_damaged_state_is_refused():
    with pytest.raises(ValueError, match="cursors"):
        OrderState.from_json({"step": 3})
