"""The ledger: what a pod's time was used for, and what it costs."""

from __future__ import annotations

import json
from typing import Any

from support.ledgers import SECOND, bill, generation, holding, seconds
from support.planner_builders import at, progress, saved

from videotrain_operator.accounting.entries import ENTRIES_LISTED, GROUPS_LISTED, Totals
from videotrain_operator.accounting.ledger import rebuild
from videotrain_operator.accounting.stored_ledger import records_in

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
    lost = rebuild(Totals({"starting": 29 * SECOND}, {"starting": 29_000}, {"start": 29_000}), [], at(40))
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
    assert records_in(before.document)["uid-0"].closed_through == 2
    after = bill(90, [holding(0, 4)], [], document=before.document)
    assert after.held == before.held + 20 * SECOND
    again = bill(110, [holding(0, 4)], [generation(4, 100, [0])], document=after.document)
    assert again.held == 106 * SECOND


def test_a_rebuilt_ledger_counts_nothing_twice_and_says_that_it_is_estimated() -> None:
    world = generation(1, 10, [0], progress=progress(1, 30, started_at=at(20), last_step_at=at(50)))
    held = [holding(0, 4), holding(1, 55)]
    lost = bill(52, held[:1], [world])
    document = rebuild(lost.totals, held, at(52))
    after = bill(60, held, [world], document=document)
    assert after.held == lost.held + 8 * SECOND + 5 * SECOND
    assert sum(after.micros.values()) == after.total == lost.total + 13_000
    assert sum(totals.micros for totals in after.stages.values()) == after.total
    assert after.estimated


def test_the_document_stays_small_and_the_totals_stay_right() -> None:
    document: dict[str, Any] | None = None
    for index in range(1000):
        pod = holding(index, index, finished_at=at(index + 2))
        one = bill(index + 3, [pod], [], document=document, observed_at=at(index + 3), run_over=True)
        document = json.loads(json.dumps(one.document))
    assert one.held == 2000 * SECOND
    assert len(one.document["entries"]) <= ENTRIES_LISTED
    assert len(json.dumps(one.document)) < 200_000


def test_a_roster_that_a_wrong_clock_dated_ahead_closes_nothing_before_its_time() -> None:
    first = progress(1, 30, "failed", started_at=at(12), last_step_at=at(20), ended_at=at(21))
    second = progress(2, 3, resumed_step=0, launched_at=at(25), started_at=at(27), last_step_at=at(30))
    ends = {"progress": first, "end_cause": "application", "end_reason": "WorkerFailed"}
    right = [generation(1, 10, [0], **ends), generation(2, 25, [0], progress=second)]
    wrong = [right[0], right[1].model_copy(update={"created_at": at(5000)})]
    before = bill(30, [holding(0, 4)], wrong)
    corrected = bill(31, [holding(0, 4)], right, document=before.document)
    assert corrected.gpu_microseconds == bill(31, [holding(0, 4)], right).gpu_microseconds


def test_a_pod_whose_node_is_a_day_ahead_is_billed_to_now_and_no_further() -> None:
    ended = holding(0, 4, finished_at=at(86_400))
    seen = bill(20, [ended], [])
    assert seen.held == 16 * SECOND
    gone = bill(22, [], [], document=seen.document, observed_at=at(20))
    assert gone.held == 16 * SECOND and gone.estimated


def test_a_pod_that_was_replaced_is_dropped_once_nothing_of_it_is_open() -> None:
    document, pods = None, 0
    for number in range(1, 40):
        begun = 20.0 * number
        facts = [progress(n, 5, resumed_step=0, started_at=at(20.0 * n + 1)) for n in (number - 1, number)]
        worlds = [
            generation(n, 20.0 * n, [0], progress=f) for n, f in zip((number - 1, number), facts, strict=True) if n
        ]
        old = holding(0, begun - 20, uid=f"uid-{number - 1}", finished_at=at(begun - 1), gone=True)
        new = holding(0, begun - 1, uid=f"uid-{number}")
        one = bill(begun + 5, [old, new] if number > 1 else [new], worlds, document=document, observed_at=at(begun))
        document = json.loads(json.dumps(one.document))
        pods = max(pods, len(document["pods"]))
    assert pods <= 2


def test_what_a_fault_cost_is_told_with_its_generation_up_to_the_next_start() -> None:
    first = progress(1, 30, "failed", started_at=at(20), last_step_at=at(50), ended_at=at(51), saved=[saved(20, 40)])
    second = progress(2, 25, resumed_step=20, launched_at=at(61), started_at=at(70), last_step_at=at(75))
    worlds = [
        generation(1, 10, [0], progress=first, end_cause="application", end_reason="WorkerFailed", lost_from_step=20),
        generation(2, 60, [0], progress=second),
    ]
    one = bill(75, [holding(0, 4)], worlds)
    # 10 s of steps and 1 s of the way out were lost, 9 s to the next roster, 10 s to ready workers: 1,000 micros each.
    assert one.totals.waste == {"start": 16_000, "application/1": 30_000}
    assert one.totals.generations == {0: 6_000, 1: 50_000, 2: 15_000}


def test_folded_entries_are_told_by_node_stage_and_month_and_are_bounded() -> None:
    document, last = None, 0.0
    for index in range(3 * ENTRIES_LISTED):
        pod = holding(index, index, finished_at=at(index + 2), node=f"node-{index % 300}")
        last = index + 3
        one = bill(last, [pod], [], document=document, observed_at=at(last), run_over=True)
        document = json.loads(json.dumps(one.document))
        assert sum(sum(g["micros"].values()) for g in document["folded"]["groups"]) == sum(
            document["folded"]["micros"].values()
        )
    groups = document["folded"]["groups"]
    assert 1 < len(groups) <= GROUPS_LISTED + 1 and {group["price"] for group in groups} == {"3.60 USD"}
    few = [holding(i, i, finished_at=at(i + 2), node=f"node-{i % 2}") for i in range(ENTRIES_LISTED + 10)]
    one = bill(1000, few, [], run_over=True)
    assert {group["node"]: group["micros"] for group in one.document["folded"]["groups"]} == {
        "node-0": {"starting": 10_000},
        "node-1": {"starting": 10_000},
    }
