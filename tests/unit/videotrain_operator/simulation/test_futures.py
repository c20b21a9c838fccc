"""Futures of runs in virtual time, against what was published and what formulas say."""

from __future__ import annotations

import math
from itertools import accumulate
from random import Random
from typing import Any

import pytest
from support.planner_builders import manifest, run_of, train_stage

from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_operator.simulation import failures as traces
from videotrain_operator.simulation.failures import DAY, Failure, Rate, TraceError, llama3_rate, read_trace
from videotrain_operator.simulation.futures import Future, best_interval, live_future, timing_of, waste, young_daly
from videotrain_operator.simulation.spot import PricePoint, read_prices, reclaims


def long_run(nodes: int, gpus: int, *, steps: int, every: int, **spec: Any) -> VideoTrainingRun:
    """A run of one stage on a fixed number of nodes that forgives every failure."""
    stage = train_stage("train", steps)
    stage["train"] = stage["train"] | {"parallel": {"microBatchesPerStep": nodes * gpus}}
    limits = {"application": 100_000, "infrastructure": 100_000, "hang": 100_000}
    fixed = {
        "stages": [stage],
        "nodes": {"min": nodes, "max": nodes},
        "pool": {"gpusPerNode": gpus, "pricePerGpuHour": "2.00"},
        "checkpoint": {"everySteps": every},
        "failurePolicy": {"limits": limits, "hangSeconds": 600},
    }
    return run_of(manifest(**(fixed | spec)))


def share(future: Future, *buckets: str) -> float:
    held = sum(future.gpu_microseconds_by_bucket.values())
    return sum(future.gpu_microseconds_by_bucket[name] for name in buckets) / held


def test_llama_3_is_interrupted_as_often_and_as_effective_as_it_was_told() -> None:
    nodes, gpus, days = 2, 64, traces.LLAMA3_DAYS / 4
    rate = llama3_rate(repair_seconds=1800.0)
    # Fewer GPUs at a rate that is as much higher: as many interruptions of the whole world, in less of the planner's
    # work. Spare nodes fail as often as those that train.
    rate = rate._replace(per_1000_gpu_days=rate.per_1000_gpu_days * traces.LLAMA3_GPUS / (nodes * gpus))
    run = long_run(nodes, gpus, steps=10_000_000, every=60)
    timing = timing_of(run, seconds_per_step={"train": 10.0}, save_seconds=5.0, start=300.0, detect=60.0)
    drawn = rate.draw(Random(3), nodes=3 * nodes, gpus=gpus, days=days)
    future = live_future(run, timing, drawn, nodes=3 * nodes, days=days)
    assert sum(count for count, _ in traces.LLAMA3.values()) == 419
    hit, expected = sum(future.interruptions.values()), 419 / 4
    # Poisson: three deviations. Failures while no world runs do not interrupt one.
    assert abs(hit - expected) < 3 * math.sqrt(expected)
    assert sum(future.restarts.values()) == pytest.approx(hit, rel=0.05)
    assert set(future.interruptions) >= {"node", "process"}
    # "More than 90 % effective training time", with a restart every three hours.
    assert 0.90 < future.goodput < 0.97
    assert future.phase in ("Running", "Restarting") and future.days == days


def test_a_sweep_of_intervals_finds_the_optimum_of_young_and_daly() -> None:
    save, mean, swept = 20.0, 4 * 3600.0, []
    # Gaps from half the mean to one and a half, by the golden ratio: the places within an interval at which failures
    # come are spread evenly, so few of them have the mean of many.
    gaps = [mean * (0.5 + number * 0.6180339887 % 1) for number in range(45)]
    fails = [Failure(at, 0, "hang", 0.0) for at in accumulate(gaps)]
    for every in (18, 38, 80):
        policy = {"limits": {"hang": 100_000}, "hangSeconds": 60}
        run = long_run(1, 8, steps=10_000_000, every=every, failurePolicy=policy)
        timing = timing_of(run, seconds_per_step={"train": 20.0}, save_seconds=save, start=30.0)
        future = live_future(run, timing, fails, nodes=1, days=45 * mean / DAY)
        assert future.interruptions["hang"] >= 43
        swept.append((every * 20.0 + save, waste(future)))
    assert min(swept, key=lambda pair: pair[1])[0] == 38 * 20.0 + save
    assert best_interval(swept) == pytest.approx(young_daly(mean, save), rel=0.05)


def test_four_announced_preemptions_cost_no_step() -> None:
    run = long_run(8, 1, steps=1600, every=400)
    timing = timing_of(run, seconds_per_step={"train": 0.5}, save_seconds=1.0, start=10.0, pod=5.0)
    taken = [Failure(60.0 + 150 * number, number, "preempt", 3600.0) for number in range(4)]
    future = live_future(run, timing, taken, nodes=12, days=1)
    assert (future.phase, future.steps) == ("Succeeded", 1600)
    assert (future.interruptions, future.restarts["preemption"]) == ({"preempt": 4}, 4)
    assert future.gpu_microseconds_by_bucket["lost"] == 0
    # Each step was made once.
    assert future.gpu_microseconds_by_bucket["productive"] == 1600 * 500_000 * 8


def test_the_same_failures_without_notice_cost_steps() -> None:
    run = long_run(8, 1, steps=1600, every=400)
    timing = timing_of(run, seconds_per_step={"train": 0.5}, save_seconds=1.0, start=10.0, pod=5.0)
    lost = [Failure(60.0 + 150 * number, number, "node", 3600.0) for number in range(4)]
    future = live_future(run, timing, lost, nodes=12, days=1)
    assert future.phase == "Succeeded"
    assert share(future, "lost") > 0.1


def test_the_bill_is_what_was_held_at_its_price() -> None:
    run = long_run(2, 8, steps=1000, every=100)
    timing = timing_of(run, seconds_per_step={"train": 1.0}, save_seconds=0.0)
    future = live_future(run, timing, [], nodes=2, days=1)
    held = sum(future.gpu_microseconds_by_bucket.values())
    assert future.micros == pytest.approx(held * 2 / 3600, abs=2)
    assert future.gpu_microseconds_by_bucket["productive"] == 1000 * 16 * 1_000_000
    assert future.passes < 40, "it goes from event to event"


def test_a_failure_that_no_limit_forgives_ends_the_run() -> None:
    run = long_run(2, 8, steps=100_000, every=100, failurePolicy={"limits": {"hang": 2}, "hangSeconds": 60})
    timing = timing_of(run, seconds_per_step={"train": 1.0})
    fails = [Failure(2000.0 * number, number % 2, "hang", 0.0) for number in range(1, 9)]
    future = live_future(run, timing, fails, nodes=2, days=2)
    assert future.phase == "Failed" and future.days < 1
    assert future.message


def test_the_same_draw_gives_the_same_future() -> None:
    def once() -> Future:
        run = long_run(2, 8, steps=20_000, every=100)
        drawn = Rate(1500.0).draw(Random(5), nodes=3, gpus=8, days=0.5)
        return live_future(run, timing_of(run, seconds_per_step={"train": 1.0}), drawn, nodes=3, days=0.5)

    assert once() == once()


def test_nodes_that_the_market_takes_come_back_and_are_paid_by_the_price_of_their_pods() -> None:
    spec = {"stages": [train_stage("train", 4000)], "nodes": {"min": 1, "max": 2}, "pool": {"gpusPerNode": 1}}
    spec["pool"] |= {"pricePerGpuHour": "1.00"}
    run = run_of(manifest(**spec))
    timing = timing_of(run, seconds_per_step={"train": 1.0}, start=10.0, pod=5.0, save_seconds=0.0)
    prices = [PricePoint(0.0, "1.00", 2), PricePoint(1800.0, "3.00", 1), PricePoint(3600.0, "1.00", 2)]
    future = live_future(run, timing, [], nodes=2, days=1, prices=prices)
    assert (future.phase, future.steps) == ("Succeeded", 4000)
    assert future.interruptions == {"preempt": 1}
    assert future.gpu_microseconds_by_bucket["lost"] == 0
    held = sum(future.gpu_microseconds_by_bucket.values())
    assert held / 3600 * 1 <= future.micros < held / 3600 * 3


def test_fewer_nodes_are_reclaims_of_those_with_the_highest_numbers() -> None:
    prices = [PricePoint(0.0, "1", 3), PricePoint(1000.0, "1", 1), PricePoint(5000.0, "1", 2)]
    found = reclaims(prices, nodes=3, days=1, notice=100.0)
    assert found == [Failure(900.0, 1, "preempt", 4000.0), Failure(900.0, 2, "preempt", DAY - 1000.0)]


def test_traces_and_histories_are_read() -> None:
    trace = "hours,node,kind,hours_away\n2,1,node,4\n0.5,0,hang,\n"
    assert read_trace("t", trace) == [Failure(1800.0, 0, "hang", 3600.0), Failure(7200.0, 1, "node", 14400.0)]
    market = "hours,price_per_gpu_hour,nodes\n0,2.50,\n1,3.10,4\n"
    assert read_prices("m", market, 8) == [PricePoint(0.0, "2.50", None), PricePoint(3600.0, "3.10", 4)]
    rows = [("2026-01-02T00:00:00+00:00", "16.00"), ("2026-01-01T00:00:00+00:00", "8.00")]
    told = ", ".join(f'{{"Timestamp": "{at}", "SpotPrice": "{price}"}}' for at, price in rows)
    aws = f'{{"SpotPriceHistory": [{told}]}}'
    assert read_prices("a", aws, 8) == [PricePoint(0.0, "1.000000"), PricePoint(DAY, "2.000000")]


@pytest.mark.parametrize("row", ["x,1,node,", "1,-1,node,", "1,1,meteor,", "1"])
def test_a_trace_that_cannot_be_read_names_line_and_what_is_allowed(row: str) -> None:
    with pytest.raises(TraceError, match=r"trace.csv: line 2: .*allowed: "):
        read_trace("trace.csv", f"hours,node,kind,hours_away\n{row}\n")


def test_a_rate_draws_as_often_as_it_says() -> None:
    drawn = list(Rate(10.0).draw(Random(1), nodes=100, gpus=8, days=500))
    assert len(drawn) == pytest.approx(4000, rel=0.05)
    assert [failure.at for failure in drawn] == sorted(failure.at for failure in drawn)
    assert list(Rate(0.0).draw(Random(1), nodes=1, gpus=1, days=1)) == []
