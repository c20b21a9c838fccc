"""Sets that are appended while a stage trains: each once per pass, in an order that no kill and no resize changes."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice

import pytest
from support.order_lives import lived

from videotrain_trainer.data.appended import grown_phases
from videotrain_trainer.data.sample_order import AppendedSet, OrderBucket, OrderPlan, OrderState
from videotrain_trainer.data.sets import WeightPiece

NAMES = ("film", "game", "own", "stock", "web")
EVERY = 5


def two(first: float | None, second: float | None, until: int | None = None) -> WeightPiece:
    """Weights of film and web; the others have no samples."""
    none = 0.0 if first is not None else None
    return WeightPiece((first, none, none, none, second), until)


def of_two(**buckets: tuple[int, int]) -> dict[str, list[int]]:
    """How many samples film and web have in which bucket."""
    return {name: [film, 0, 0, 0, web] for name, (film, web) in buckets.items()}


def plan_of(parts: dict[str, list[int]], pieces, seed=3, micro_batches=5) -> OrderPlan:
    """Buckets with how many samples each source has there."""
    totals = [sum(sizes[k] for sizes in parts.values()) for k in range(len(NAMES))]
    return OrderPlan(
        buckets_of(parts), seed, micro_batches, "0" * 16, NAMES, tuple(grown_phases(pieces, NAMES, totals, ()))
    )


def buckets_of(parts: dict[str, list[int]]) -> tuple[OrderBucket, ...]:
    return tuple(OrderBucket(name, sum(sizes), 1 + len(name) % 3, parts=tuple(sizes)) for name, sizes in parts.items())


@dataclass(frozen=True)
class News:
    """A set that was appended, and how many samples it has in which bucket."""

    one: AppendedSet
    sizes: dict[str, int]


def grow(plan: OrderPlan, pieces, news: list[News]) -> OrderPlan:
    """As `GrowingData.grown` does it, with sizes in place of sets."""
    for found in news[len(plan.appended) :]:
        parts = {bucket.name: [*bucket.parts, found.sizes.get(bucket.name, 0)] for bucket in plan.buckets}
        more = sorted(set(found.sizes) - set(parts))
        parts |= {name: [*[0] * len(plan.sources), found.sizes[name]] for name in more}
        appended = (*plan.appended, found.one)
        totals = [sum(sizes[k] for sizes in parts.values()) for k in range(len(plan.sources) + 1)]
        plan = replace(
            plan,
            buckets=buckets_of(parts),
            sources=(*plan.sources, found.one.name),
            phases=tuple(grown_phases(pieces, NAMES, totals, appended)),
            appended=appended,
            grew_from=(*plan.grew_from, (plan.fingerprint, len(plan.appended))),
        )
    return plan


def random_stage(chance: random.Random) -> tuple[OrderPlan, list[WeightPiece], list[News]]:
    """Five sources of very different sizes, most with weights that change twice, and sets that come to any of them."""
    parts = {f"b{n}": [chance.choice((0, 1, 3, 20, 90)) for _ in NAMES] for n in range(chance.randint(1, 3))}
    parts["b0"] = [max(1, size) for size in parts["b0"]]
    weights = [tuple(chance.choice((0.1, 0.3, 1.0, 2.5, 7.0)) for _ in NAMES) for _ in range(3)]
    weights[1] = (*weights[1][:4], 0.0)
    changes = (chance.randint(1, 30), chance.randint(31, 60), None)
    pieces = [WeightPiece(each, until) for each, until in zip(weights, changes, strict=True)]
    if chance.random() < 0.2:
        pieces = [WeightPiece((None,) * len(NAMES), None)]
    steps = sorted(chance.choice(range(0, 61, EVERY)) for _ in range(chance.randint(1, 4)))
    count = Counter[str]()
    news = []
    for step in steps:
        source = chance.choice(NAMES)
        count[source] += 1
        sizes = {f"b{n}": chance.choice((1, 3, 25)) for n in chance.sample(range(5), chance.randint(1, 3))}
        news.append(News(AppendedSet(step, source, count[source], f"s3://{source}{count[source]}", "x"), sizes))
    plan = plan_of(parts, pieces, seed=chance.getrandbits(53), micro_batches=chance.randint(1, 8))
    return plan, pieces, news


class Decisions:
    """What was decided for each step, as the object store keeps it."""

    def __init__(self, news: list[News], chance: random.Random) -> None:
        self._news, self._seen, self._decided = news, 0, dict[int, list[News]]()
        self._chance = chance

    def at(self, step: int) -> list[News]:
        """News come whenever; who comes to a step first decides."""
        if step not in self._decided:
            here = [found for found in self._news[self._seen :] if found.one.after_step <= step]
            self._seen += len(here)
            self._decided[step] = [replace(found, one=replace(found.one, after_step=step)) for found in here]
        return self._decided[step]

    def all(self) -> list[News]:
        return [found for step in sorted(self._decided) for found in self._decided[step]]


def life_of(base: OrderPlan, pieces, decisions: Decisions, steps: int, chance: random.Random):
    """See `lived`: a world opens what its checkpoint has taken in, and looks for more before every fifth step."""

    def opened(state: OrderState) -> OrderPlan:
        return grow(base, pieces, [found for found in decisions.all() if found.one in state.appended])

    def take_in(plan: OrderPlan, state: OrderState) -> OrderPlan:
        if state.step % EVERY:
            return plan
        new = [found for found in decisions.at(state.step) if found.one not in state.appended]
        return grow(plan, pieces, [*(found for found in decisions.all() if found.one in plan.appended), *new])

    return lived(base.start(), opened, steps, chance, take_in)


def test_fifty_histories_of_kills_resizes_new_weights_and_appended_sets_lose_and_repeat_nothing_in_one_order():
    restarts = grown_at = 0
    for history in range(50):
        chance = random.Random(history)
        base, pieces, news = random_stage(chance)
        decisions = Decisions(news, chance)
        found, lives = life_of(base, pieces, decisions, 70, chance)
        restarts += lives - 1
        grown_at += len(decisions.all())
        plan = grow(base, pieces, decisions.all())
        whole = list(islice(plan.walk(plan.adopt(base.start())), 70))
        assert found == [[(o.bucket, i) for batch in o.micro_batches for i in batch] for o in whole], history
        for number, bucket in enumerate(plan.buckets):
            firsts = [sum(bucket.parts[:k]) for k in range(len(bucket.parts) + 1)]
            for k, size in enumerate(bucket.parts):
                steps = [
                    (step, i)
                    for step, ids in enumerate(found, start=1)
                    for b, i in ids
                    if b == bucket.name and firsts[k] <= i < firsts[k + 1]
                ]
                if k >= len(NAMES):
                    assert all(step > plan.appended[k - len(NAMES)].after_step for step, _ in steps), (history, k)
                stream = [i for _, i in steps]
                for begin in range(0, len(stream), max(1, size)):
                    epoch = stream[begin : begin + size]
                    assert len(set(epoch)) == len(epoch), (history, number, k, "repeated within a pass")
                    assert len(epoch) == size or begin + size > len(stream), (history, number, k, "lost")
    assert restarts > 200 and grown_at > 80


def test_a_grown_order_is_the_old_one_up_to_its_step_whatever_came_later():
    pieces = [two(2.0, 1.0, 7), two(1.0, 1.0)]
    base = plan_of(of_two(b0=(30, 20), b1=(0, 9)), pieces)
    grown = grow(base, pieces, [News(AppendedSet(10, "web", 1, "s3://a", "x"), {"b0": 8, "b7": 4})])
    before, after = base.start(), grown.adopt(base.start())
    for _ in range(10):
        one, other = base.step(before), grown.step(after)
        assert [list(b) for b in one.micro_batches] == [list(b) for b in other.micro_batches]
        before, after = base.advance(before), grown.advance(after)
        assert grown.adopt(before) == after
    with pytest.raises(ValueError, match="at step 11 was made without AppendedSet"):
        grown.adopt(base.advance(before))
    with pytest.raises(ValueError, match="belongs to another data set"):
        base.check(after)


def test_new_samples_weigh_as_much_as_the_others_of_their_source():
    pieces = [two(3.0, 1.0)]
    base = plan_of(of_two(b0=(40, 100)), pieces)
    plan = grow(base, pieces, [News(AppendedSet(20, "web", 1, "s3://a", "x"), {"b0": 300})])
    weights = plan.phases[1].weights
    assert [weight for weight in weights if weight] == [Fraction(3), Fraction(1, 4), Fraction(3, 4)]
    seen = Counter(
        plan.source_of(order.bucket_index, i)
        for order in islice(plan.walk(plan.adopt(base.start())), 20, 820)
        for batch in order.micro_batches
        for i in batch
    )
    for source, share in ((0, 0.75), (4, 0.25 * 0.25), (5, 0.25 * 0.75)):
        assert abs(seen[source] - share * seen.total()) <= 2


def test_a_stand_in_of_a_lone_sample_stays_the_same_when_the_order_grows():
    pieces = [two(1.0, 1.0)]
    base = plan_of(of_two(b0=(1, 12)), pieces)
    plan = grow(base, pieces, [News(AppendedSet(5, "web", 1, "s3://a", "x"), {"b0": 50})])
    assert [base.spare(0, 0, 4, n) for n in range(1, 4)] == [plan.spare(0, 0, 4, n) for n in range(1, 4)]


def test_a_state_tells_what_was_taken_in_and_another_set_is_refused():
    pieces = [two(None, None)]
    base = plan_of(of_two(b0=(10, 12)), pieces)
    first = News(AppendedSet(0, "web", 1, "s3://a", "x"), {"b0": 5})
    plan = grow(base, pieces, [first])
    state = plan.advance(plan.adopt(base.start()))
    assert OrderState.from_json(json.loads(json.dumps(state.to_json()))) == state
    other = grow(base, pieces, [replace(first, one=replace(first.one, index="y"))])
    with pytest.raises(ValueError, match="belongs to another data set"):
        other.check(other.adopt(state))
