"""The ledger: whatever happens, buckets sum to what was held, and what is closed stays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.planner_builders import START, at, progress, saved

from videotrain_api.resource.status import GenerationStatus
from videotrain_operator.accounting import ledger as ledger_module
from videotrain_operator.accounting.ledger import Bill, Holding, rebuild, settle

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


# One pod, one generation: created 10, ready 20, steps of a second from 20 on.


def test_waiting_and_starting_are_starting_and_steps_are_productive() -> None:
    world = generation(1, 10, [0], progress=progress(1, 30, started_at=at(20), last_step_at=at(50)))
    assert seconds(bill(52, [holding(0, 4)], [world])) == {"starting": 16, "productive": 32}


def test_waits_for_data_and_checkpoints_are_their_own_buckets() -> None:
    facts = progress(1, 30, started_at=at(20), last_step_at=at(50), data_stall_us=4 * SECOND, checkpoint_us=2 * SECOND)
    want = {"starting": 16, "productive": 24, "dataStall": 4, "checkpoint": 2}
    assert seconds(bill(50, [holding(0, 4)], [generation(1, 10, [0], progress=facts)])) == want


def test_steps_after_the_checkpoint_that_was_resumed_are_lost() -> None:
    first = progress(1, 30, "failed", started_at=at(20), last_step_at=at(50), ended_at=at(51), saved=[saved(20, 40)])
    second = progress(2, 25, resumed_step=20, launched_at=at(61), started_at=at(70), last_step_at=at(75))
    worlds = [
        generation(1, 10, [0], progress=first, end_cause="application", end_reason="WorkerFailed", lost_from_step=20),
        generation(2, 60, [0], progress=second),
    ]
    want = {"starting": 16, "productive": 20 + 5, "lost": 10 + 1, "restarting": 9 + 10}
    assert seconds(bill(75, [holding(0, 4)], worlds)) == want


def test_lost_is_assigned_after_the_fact_though_the_ledger_was_stored_before() -> None:
    facts = progress(1, 30, "failed", started_at=at(20), last_step_at=at(50), ended_at=at(51), saved=[saved(20, 40)])
    first = generation(1, 10, [0], progress=facts, end_cause="application", end_reason="WorkerFailed")
    second = generation(2, 60, [0])
    before = bill(65, [holding(0, 4)], [first, second])
    assert seconds(before)["productive"] == 30
    resumed = second.model_copy(
        update={"progress": progress(2, resumed_step=20, launched_at=at(61), started_at=at(70))}
    )
    known = first.model_copy(update={"lost_from_step": 20})
    after = bill(70, [holding(0, 4)], [known, resumed], document=before.document)
    assert seconds(after)["productive"] == 20 and seconds(after)["lost"] == 11


def test_generations_that_the_status_forgot_are_not_billed_again() -> None:
    # Numbers have gaps: a roster that stops the workers uses one too.
    numbers = [1, 2, 4, 5, 7]
    facts = [
        progress(n, 10, launched_at=at(20 * n), started_at=at(20 * n + 1), last_step_at=at(20 * n + 11))
        for n in numbers
    ]
    worlds = [generation(n, 20 * n, [0], progress=f) for n, f in zip(numbers, facts, strict=True)]
    document = None
    for count in range(1, 6):
        now = 20 * numbers[count - 1] + 15
        one = bill(now, [holding(0, 4)], worlds[max(0, count - 2) : count], document=document)
        document = json.loads(json.dumps(one.document))
        assert one.held == (now - 4) * SECOND


def test_a_hang_is_stalled_from_its_last_step_to_the_kill() -> None:
    first = progress(1, 30, "failed", started_at=at(20), last_step_at=at(50), ended_at=at(90), saved=[saved(30, 50)])
    second = progress(2, 31, resumed_step=30, launched_at=at(90), started_at=at(95), last_step_at=at(100))
    worlds = [
        generation(1, 10, [0], progress=first, end_cause="hang", end_reason="Hang", lost_from_step=30),
        generation(2, 88, [0], progress=second),
    ]
    want = {"starting": 16, "productive": 30 + 5, "stalled": 40, "restarting": 5}
    assert seconds(bill(100, [holding(0, 4)], worlds)) == want


def test_a_drain_is_draining_and_a_pod_that_left_is_idle() -> None:
    first = progress(1, 30, "drained", started_at=at(20), last_step_at=at(50), ended_at=at(53), saved=[saved(30, 50)])
    second = progress(2, 31, resumed_step=30, launched_at=at(54), started_at=at(60), last_step_at=at(62))
    worlds = [
        generation(1, 10, [0, 1], progress=first, end_cause="drained", end_reason="Shrink", lost_from_step=30),
        generation(2, 49, [0], progress=second, reason="Shrink"),
    ]
    stays = seconds(bill(62, [holding(0, 4)], worlds))
    leaves = seconds(bill(62, [holding(1, 4)], worlds))
    assert stays == {"starting": 16, "productive": 30 + 2, "draining": 3, "restarting": 7}
    assert leaves == {"starting": 16, "productive": 30, "draining": 3, "idle": 9}


def test_a_newcomer_that_waits_while_others_train_is_idle() -> None:
    world = generation(1, 10, [0], progress=progress(1, 30, started_at=at(20), last_step_at=at(50)))
    assert seconds(bill(50, [holding(1, 30)], [world])) == {"starting": 1, "idle": 19}


def test_a_replacement_of_the_same_name_is_not_the_member() -> None:
    world = generation(1, 10, [0], progress=progress(1, 30, started_at=at(20), last_step_at=at(50)))
    later = holding(0, 30, uid="uid-0b")
    assert "productive" not in seconds(bill(50, [later], [world]))


def test_a_finished_pod_costs_nothing_more() -> None:
    one = bill(500, [holding(0, 4, finished_at=at(10))], [], run_over=True)
    assert one.held == 6 * SECOND and one.gpus_held == 0 and one.rate_micros_per_hour == 0
    assert one.total == 6_000


def test_the_price_of_the_day_it_was_created_counts() -> None:
    pods = [holding(0, 0, finished_at=at(3600)), holding(1, 0, price="7.20 USD", finished_at=at(3600))]
    assert bill(4000, pods, [], run_over=True).total == 3_600_000 + 7_200_000


def test_a_vanished_pod_ends_when_it_was_last_seen_and_is_marked() -> None:
    first = bill(20, [holding(0, 4)], [])
    later = bill(60, [], [], document=first.document, observed_at=at(21), run_over=True)
    assert later.held == 17 * SECOND and later.estimated
    assert not first.estimated
    assert bill(90, [], [], document=later.document, observed_at=at(60), run_over=True).document == later.document


def test_a_deleted_pod_whose_end_was_seen_is_exact() -> None:
    first = bill(20, [holding(0, 4)], [])
    gone = holding(0, 4, finished_at=at(33), gone=True)
    later = bill(60, [gone], [], document=first.document, observed_at=at(21), run_over=True)
    assert later.held == 29 * SECOND and not later.estimated


def test_a_deleted_pod_that_the_folded_totals_may_hold_is_not_billed_again_and_marked() -> None:
    gone = holding(0, 4, finished_at=at(33), gone=True)
    lost = rebuild({"starting": 29 * SECOND}, {"starting": 29_000}, [], at(40)) | {}
    lost["folded"]["estimated"] = False
    one = bill(60, [gone], [], document=lost)
    assert one.held == 29 * SECOND and one.estimated


def test_time_goes_on_when_an_emptied_status_knows_no_generation() -> None:
    worlds = [
        generation(
            n, 20 * n, [0], progress=progress(n, 10, resumed_step=0, launched_at=at(20 * n), started_at=at(20 * n))
        )
        for n in (1, 2, 3)
    ]
    before = bill(70, [holding(0, 4)], worlds)
    assert before.document["pods"]["uid-0"]["closedThrough"] == 2
    after = bill(90, [holding(0, 4)], [], document=before.document)
    assert after.held == before.held + 20 * SECOND
    again = bill(110, [holding(0, 4)], [generation(4, 100, [0])], document=after.document)
    assert again.held == 106 * SECOND


def test_a_rebuilt_ledger_counts_nothing_twice_and_says_that_it_is_estimated() -> None:
    world = generation(1, 10, [0], progress=progress(1, 30, started_at=at(20), last_step_at=at(50)))
    held = [holding(0, 4), holding(1, 55)]
    lost = bill(52, held[:1], [world])
    document = rebuild(lost.gpu_microseconds, lost.micros, held, at(52))
    after = bill(60, held, [world], document=document)
    assert after.held == lost.held + 8 * SECOND + 5 * SECOND
    assert sum(after.micros.values()) == after.total == lost.total + 13_000
    assert after.estimated


def test_the_document_stays_small_and_the_totals_stay_right() -> None:
    document: dict[str, Any] | None = None
    for index in range(1000):
        pod = holding(index, index, finished_at=at(index + 2))
        one = bill(index + 3, [pod], [], document=document, observed_at=at(index + 3), run_over=True)
        document = json.loads(json.dumps(one.document))
    assert one.held == 2000 * SECOND
    assert len(one.document["entries"]) <= ledger_module.ENTRIES_LISTED
    assert len(json.dumps(one.document)) < 200_000


# Random histories.


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
    entries = one.document["entries"]
    assert all(sum(e["micros"].values()) >= 0 for e in entries)


@given(histories())
def test_buckets_sum_to_what_was_held_at_any_time(history: History) -> None:
    for now in (0.0, history.end / 3, history.end / 2, history.end):
        pods, worlds = known_at(history, now)
        check_identity(bill(now, pods, worlds), pods, now)


@given(histories(), st.lists(st.floats(0, 1), max_size=8))
@settings(deadline=None)
def test_it_does_not_matter_when_the_operator_looked(history: History, looks: list[float]) -> None:
    """Closed entries never change, settling again changes nothing, and each look accounts for all that was held."""
    document: dict[str, Any] | None = None
    closed: list[dict[str, Any]] = []
    for now in [*sorted(look * history.end for look in looks), history.end]:
        pods, worlds = known_at(history, now)
        one = bill(now, pods, worlds, document=document)
        check_identity(one, pods, now)
        again = bill(now, pods, worlds, document=json.loads(json.dumps(one.document)))
        assert (again.document, again.gpu_microseconds, again.micros) == (
            one.document,
            one.gpu_microseconds,
            one.micros,
        )
        entries = one.document["entries"]
        assert [entry for entry in entries if entry in closed] == closed
        closed, document = entries, json.loads(json.dumps(one.document))


@given(histories())
def test_a_replay_by_a_new_operator_gives_the_same_bill(history: History) -> None:
    pods, worlds = known_at(history, history.end)
    once = bill(history.end, pods, worlds)
    stored = json.loads(json.dumps(once.document))
    later = bill(history.end, pods, worlds, document=stored)
    assert (later.gpu_microseconds, later.micros) == (once.gpu_microseconds, once.micros)


@given(histories())
def test_money_is_the_price_of_the_time_to_within_half_a_micro_per_entry(history: History) -> None:
    pods, worlds = known_at(history, history.end)
    one = bill(history.end, pods, worlds)
    exact = sum(
        held_microseconds([pod], at(history.end)) * (1_370_000 if pod.price.startswith("1.37") else 2_000_000) / 3.6e9
        for pod in pods
    )
    assert abs(one.total - exact) <= 0.5 * len(pods) * (len(worlds) + 1) + 1e-3


def test_the_beginning_of_time_is_noon() -> None:
    assert at(0) == START


# A pod that is missing from a look, and there again.


def looks(
    there: list[bool], *, over_from: int = 10**9, restarts: tuple[int, ...] = (), price: str = "3.60 USD"
) -> tuple[Bill, list[int]]:
    """A look every ten seconds at a pod bound at 4; the last bill, and what was held at each look."""
    begun = [generation(n, 10 + 20 * i, [0]) for i, n in enumerate((1, *restarts))]
    worlds = [
        world.model_copy(update={"progress": progress(world.number, 0, started_at=world.created_at)}) for world in begun
    ]
    document, held = None, []
    for look, present in enumerate(there):
        now = 10.0 * (look + 1)
        pods = [holding(0, 4, price=price if look else "3.60 USD")] if present else []
        known = [world for world in worlds if world.created_at <= at(now)]
        more: dict[str, Any] = {"document": document, "observed_at": at(now - 10), "run_over": look >= over_from}
        one = bill(now, pods, known, **more)
        document = json.loads(json.dumps(one.document))
        held.append(one.held)
    return one, held


@settings(max_examples=300, deadline=None)
@given(st.lists(st.booleans(), max_size=12), st.integers(0, 14), st.integers(0, 2))
def test_a_pod_that_flickers_is_billed_exactly_once_it_is_back(
    middle: list[bool], over_from: int, restarts: int
) -> None:
    there = [True, *middle, True]
    one, held = looks(there, over_from=over_from, restarts=tuple(range(2, 2 + restarts)))
    assert one.held == (10 * len(there) - 4) * SECOND
    assert held == sorted(held), "what is held never falls"
    assert one.total == one.held * 3_600_000 // (3600 * SECOND)


def test_a_pod_that_is_missing_is_billed_to_its_last_look_and_estimated() -> None:
    one, _ = looks([True, True, False])
    assert one.held == 16 * SECOND and one.estimated


def test_the_price_of_the_first_look_holds() -> None:
    one, _ = looks([True, True, True], price="0 USD")
    assert one.total == 26 * 1000


def test_a_pod_that_came_and_went_between_two_writes_is_billed_once_or_marked() -> None:
    short = holding(1, 12, finished_at=at(18), gone=True)
    stored = bill(11, [holding(0, 4)], []).document
    one = bill(20, [holding(0, 4), short], [], document=stored, observed_at=at(11))
    assert one.held == (16 + 6) * SECOND and not one.estimated
    killed = holding(2, 12, gone=True)
    one = bill(20, [holding(0, 4), killed], [], document=stored, observed_at=at(15))
    assert one.held == (16 + 3) * SECOND and one.estimated


def test_a_pod_that_is_closed_and_told_of_again_is_not_billed_again() -> None:
    short = holding(1, 4, finished_at=at(18), gone=True)
    over = bill(30, [short._replace(gone=False)], [], run_over=True)
    closed = bill(31, [short], [], run_over=True, document=over.document)
    again = bill(32, [short], [], run_over=True, document=closed.document)
    assert not closed.document["pods"] and closed.held == again.held == 14 * SECOND


def folded_away(pods: int = 3) -> Bill:
    """A run is over that had more pods than entries are listed: bound at 4, ended at 20."""
    many = [holding(i, 4, finished_at=at(20)) for i in range(ledger_module.ENTRIES_LISTED + pods)]
    over = bill(30, many, [], run_over=True)
    return bill(31, [], [], run_over=True, document=over.document, observed_at=at(30))


def test_a_pod_that_returns_after_its_entries_were_folded_is_not_charged_twice() -> None:
    before = folded_away()
    assert not before.document["pods"] and not before.estimated
    back = bill(40, [holding(0, 4, finished_at=at(20))], [], run_over=True, document=before.document)
    assert back.held == before.held and back.estimated
    told = bill(40, [holding(0, 4, finished_at=at(20), gone=True)], [], run_over=True, document=before.document)
    assert told.held == before.held and told.estimated


def test_a_pod_that_is_newer_than_what_was_folded_is_billed_exactly() -> None:
    before = folded_away()
    for gone in (False, True):
        new = holding(9000, 25, finished_at=at(28), gone=gone)
        one = bill(40, [new], [], run_over=True, document=before.document)
        assert one.held == before.held + 3 * SECOND and not one.estimated
