"""Short ways to say what a ledger is settled from, and random histories of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from support.planner_builders import at, progress, saved

from videotrain_api.resource.status import GenerationStatus
from videotrain_operator.accounting.ledger import Bill, Holding, settle

SECOND = 1_000_000


def holding(index: int, bound: float, **more: Any) -> Holding:
    facts: dict[str, Any] = {
        "uid": f"uid-{index}",
        "pod": f"demo-w{index}",
        "gpus": 1,
        "price": "3.60 USD",
        "created_at": at(bound - 1),
        "bound_at": at(bound),
        "started_at": at(bound + 1),
    }
    return Holding(**(facts | more))


def generation(number: int, created: float, members: list[int], **more: Any) -> GenerationStatus:
    facts: dict[str, Any] = {
        "number": number,
        "stage": "train",
        "reason": "Started" if number == 1 else "NodeLost",
        "members": [f"demo-w{i}" for i in members],
        "world_size": len(members),
        "gpus": len(members),
        "created_at": at(created),
    }
    return GenerationStatus(**(facts | more))


def bill(now: float, held: list[Holding], generations: list[GenerationStatus], **more: Any) -> Bill:
    options: dict[str, Any] = {"observed_at": None, "run_over": False, "document": None}
    options |= more
    document = options.pop("document")
    return settle(document, held, generations, now=at(now), **options)


def seconds(one: Bill) -> dict[str, float]:
    return {name: amount / SECOND for name, amount in one.gpu_microseconds.items()}


@dataclass(frozen=True)
class History:
    """Facts as they are known at the end of time, and when each generation began."""

    pods: list[Holding]
    generations: list[GenerationStatus]
    end: float


@st.composite
def histories(draw: st.DrawFn) -> History:
    count = draw(st.integers(1, 4))
    pods = []
    for index in range(count):
        bound = draw(st.integers(0, 40))
        life = draw(st.one_of(st.none(), st.integers(1, 200)))
        ended = None if life is None else at(bound + life)
        gpus = draw(st.integers(1, 8))
        pods.append(
            holding(index, bound, finished_at=ended, gpus=gpus, price=draw(st.sampled_from(["1.37 USD", "2 USD"])))
        )
    clock, step, worlds = 45.0, 0, []
    for number in range(1, draw(st.integers(0, 5)) + 1):
        world, clock, step = draw(a_generation(number, clock, step, count))
        worlds.append(world)
    return History(pods, worlds, clock + draw(st.integers(0, 50)))


@st.composite
def a_generation(
    draw: st.DrawFn, number: int, created: float, resumed: int, pods: int
) -> tuple[GenerationStatus, float, int]:
    members = draw(st.lists(st.integers(0, pods - 1), min_size=1, unique=True))
    jitter = st.floats(-3, 12, allow_nan=False)  # clocks of nodes may be off
    started = created + draw(jitter)
    steps = draw(st.integers(0, 10))
    last = started + steps + draw(jitter) if steps else None
    over = (last or started) + draw(jitter)
    points = [saved(resumed + s, started + s) for s in range(1, steps + 1) if draw(st.booleans())]
    next_step = points[-1].step if points else resumed
    state = draw(st.sampled_from(["failed", "drained", "succeeded"]))
    known = draw(st.sampled_from(["nothing", "started", "all"]))
    facts = progress(
        number,
        resumed + steps,
        state,
        resumed_step=resumed,
        started_at=at(started) if known != "nothing" else None,
        first_step_at=at(started + 1) if steps else None,
        last_step_at=at(last) if last is not None and known == "all" else None,
        ended_at=at(over) if known == "all" else None,
        data_stall_us=draw(st.integers(0, 20 * SECOND)),
        checkpoint_us=draw(st.integers(0, 20 * SECOND)),
        saved=points,
    )
    cause = draw(st.sampled_from(["application", "infrastructure", "hang", "drained", "completed", "preemption"]))
    lost = draw(st.one_of(st.none(), st.just(next_step), st.integers(0, resumed + steps)))
    reason = draw(st.sampled_from(["Suspended", "NodeLost", "Completed"]))
    world = generation(
        number, created, sorted(members), progress=facts, end_cause=cause, end_reason=reason, lost_from_step=lost
    )
    return world, max(created + 1, over) + draw(st.integers(0, 20)), next_step


def known_at(history: History, now: float) -> tuple[list[Holding], list[GenerationStatus]]:
    """What an operator sees at some time: later things did not happen yet."""
    moment = at(now)
    pods = [
        pod._replace(finished_at=pod.finished_at if pod.finished_at and pod.finished_at <= moment else None)
        for pod in history.pods
        if pod.bound_at <= moment
    ]
    worlds = []
    begun = [w for w in history.generations if w.created_at <= moment]
    for index, world in enumerate(begun):
        if index + 1 < len(begun):
            worlds.append(world)
            continue
        facts = world.progress
        assert facts is not None
        changes: dict[str, Any] = {"end_cause": None, "end_reason": None, "lost_from_step": None}
        if facts.started_at is None or facts.started_at > moment:
            changes["progress"] = None
        worlds.append(world.model_copy(update=changes))
    return pods, worlds


def held_microseconds(pods: list[Holding], now: datetime) -> int:
    """The bill's size, summed by brute force."""
    return sum(
        pod.gpus * max(0, (min(pod.finished_at or now, now) - pod.bound_at) // timedelta(microseconds=1))
        for pod in pods
    )


def check_identity(one: Bill, pods: list[Holding], now: float) -> None:
    assert one.held == held_microseconds(pods, at(now))
    assert all(amount >= 0 for amount in one.gpu_microseconds.values())
    entries, folded = one.document["entries"], one.document["folded"]
    assert all(sum(e["micros"].values()) >= 0 for e in entries)
    assert sum(one.totals.waste.values()) == one.total - one.micros.get("productive", 0)
    assert sum(one.totals.generations.values()) == one.total
    assert sum(one.totals.months.values()) == one.total
    assert {name: sum(causes.values()) for name, causes in one.totals.causes.items()} == {
        name: stage.micros for name, stage in one.stages.items()
    }
    assert sum(stage.micros for stage in one.stages.values()) == one.total
    assert all(
        sum(e["waste"].values()) == sum(e["micros"].values()) - e["micros"].get("productive", 0) for e in entries
    )
    assert sum(sum(g["micros"].values()) for g in folded["groups"]) == sum(folded["micros"].values())
