"""What a replay of loaders tells: what must hold whatever the store does, and what is known without a replay."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.cost.data_wait import Latency, Reading, StepLoad, data_wait
from videotrain_api.cost.stage_data_wait import STORE, sample_bytes, stage_data_wait
from videotrain_api.cost.stage_memory import TrainMemory
from videotrain_api.validation import parse_run

LOADS = st.lists(
    st.builds(
        StepLoad,
        micro_batches=st.integers(1, 3),
        samples=st.integers(1, 6),
        sample_bytes=st.floats(0, 1e7),
        seconds=st.floats(0.01, 2),
    ),
    min_size=2,
    max_size=12,
)
LATENCIES = st.builds(
    Latency,
    p50_seconds=st.floats(0.01, 0.5),
    p99_seconds=st.floats(0.5, 3),
    stalled_share=st.sampled_from([0, 0.01, 0.3]),
    stall_seconds=st.floats(0, 20),
    hedge_quantile=st.sampled_from([None, 0.5, 0.95]),
    seed=st.integers(0, 99),
)
READINGS = st.builds(
    Reading,
    threads=st.integers(1, 8),
    ahead=st.integers(0, 6),
    answers=LATENCIES,
    rank_bytes_per_second=st.sampled_from([1e6, 1e9, math.inf]),
    cpu_seconds=st.sampled_from([0.0, 0.02]),
)
ROUNDING = 1e-9
"""Sums of a few hundred doubles of seconds."""
AT_ONCE = Latency(p50_seconds=0, p99_seconds=0)


@given(LOADS, READINGS, st.integers(1, 4), st.integers(1, 5))
def test_reading_further_ahead_by_more_threads_or_a_faster_line_never_waits_more(loads, reading, ranks, more) -> None:
    # What comes before the end of the first step does not count, so the first one is empty here.
    steps = [StepLoad(micro_batches=1, samples=0, sample_bytes=0, seconds=0), *loads]
    waited, answers = data_wait(steps, ranks, reading).waited, reading.answers
    twice_as_fast = replace(
        answers,
        p50_seconds=answers.p50_seconds / 2,
        p99_seconds=answers.p99_seconds / 2,
        stall_seconds=answers.stall_seconds / 2,
    )
    for better in (
        replace(reading, ahead=reading.ahead + more),
        replace(reading, threads=reading.threads + more),
        replace(reading, rank_bytes_per_second=reading.rank_bytes_per_second * (1 + more)),
        replace(reading, cpu_seconds=0.0),
        replace(reading, answers=twice_as_fast),
    ):
        assert data_wait(steps, ranks, better).waited <= waited + ROUNDING


@given(LOADS, READINGS, st.integers(1, 4))
def test_a_store_that_answers_at_once_makes_nobody_wait(loads, reading, ranks) -> None:
    reading = replace(reading, answers=AT_ONCE, rank_bytes_per_second=math.inf, cpu_seconds=0.0)
    found = data_wait(loads, ranks, reading)
    assert found.waited == 0 and found.share == 0
    worked = sum(load.micro_batches * load.seconds for load in loads[1:])
    assert found.seconds == pytest.approx(worked, rel=1e-12)


@given(LOADS, READINGS)
def test_more_ranks_never_wait_less_and_a_replay_repeats(loads, reading) -> None:
    first = StepLoad(micro_batches=1, samples=0, sample_bytes=0, seconds=0)
    few, many = (data_wait([first, *loads], ranks, reading) for ranks in (1, 3))
    assert few.waited <= many.waited + ROUNDING
    assert data_wait([first, *loads], 3, reading) == many


def test_what_can_be_said_without_a_replay() -> None:
    """One thread, nothing ahead: every sample is waited for. Two ahead of slow steps: none is."""
    answers = Latency(p50_seconds=0.1, p99_seconds=0.1)
    load = StepLoad(micro_batches=1, samples=3, sample_bytes=0, seconds=1.0)
    alone = Reading(threads=1, ahead=0, answers=answers, rank_bytes_per_second=math.inf)
    found = data_wait([load] * 5, 1, alone)
    assert (found.steps, found.waited, found.seconds) == (4, pytest.approx(1.2), pytest.approx(5.2))
    assert data_wait([load] * 5, 1, replace(alone, threads=3)).waited == pytest.approx(0.4)
    assert data_wait([load] * 5, 1, replace(alone, ahead=2)).waited == 0
    line = replace(alone, threads=3, rank_bytes_per_second=1e6)
    heavy = replace(load, sample_bytes=1e6)
    assert data_wait([heavy] * 5, 1, line).waited == pytest.approx(4 * 3.1, rel=0.05), "a byte takes its microsecond"


def test_a_second_request_hides_stalls() -> None:
    stalls = Latency(p50_seconds=0.03, p99_seconds=0.1, stalled_share=0.01, stall_seconds=2.0)
    load = StepLoad(micro_batches=1, samples=8, sample_bytes=0, seconds=0.2)
    reading = Reading(threads=8, ahead=2, answers=stalls, rank_bytes_per_second=math.inf)
    once = data_wait([load] * 200, 8, reading)
    twice = data_wait([load] * 200, 8, replace(reading, answers=replace(stalls, hedge_quantile=0.95)))
    assert once.share > 0.3 and twice.share < 0.1 * once.share


def test_quantiles_are_those_that_were_said() -> None:
    latency = Latency(p50_seconds=0.03, p99_seconds=0.2)
    drawn = sorted(latency.seconds(rank, number) for rank in range(40) for number in range(500))
    # 20,000 draws: the share below a quantile strays by about sqrt(q (1 - q) / n), here at most 0.4 %.
    for share, seconds in ((0.5, 0.03), (0.99, 0.2)):
        below = sum(one <= seconds for one in drawn) / len(drawn)
        assert below == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / len(drawn)))
    assert latency.quantile(0.99) == pytest.approx(0.2) and latency.quantile(0.5) == pytest.approx(0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        {"p50_seconds": 1, "p99_seconds": 0.5},
        {"p50_seconds": 0, "p99_seconds": 0.5},
        {"p50_seconds": 0.1, "p99_seconds": 0.5, "stalled_share": 2},
        {"p50_seconds": 0.1, "p99_seconds": 0.5, "stall_seconds": -1},
        {"p50_seconds": 0.1, "p99_seconds": 0.5, "hedge_quantile": 1},
    ],
)
def test_latencies_that_cannot_be_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Latency(**wrong)


def test_a_stage_of_the_recipe_waits_more_on_more_nodes_and_pays_for_it(examples_run) -> None:
    few, many = (stage_data_wait(examples_run, 0, nodes) for nodes in (14, 28))
    assert 0 < few.share < many.share < 0.5
    assert float(few.cost) == pytest.approx(few.gpu_hours * 2.0, abs=1e-5)
    assert many.reads_per_second > few.reads_per_second
    calm = replace(STORE, p50_seconds=0.0, p99_seconds=0.0, stalled_share=0.0)
    assert stage_data_wait(examples_run, 0, 28, calm).gpu_hours == 0


def test_bytes_of_a_sample_are_those_of_its_latents_and_its_text(examples_run) -> None:
    table = TrainMemory(examples_run, 0)
    image = next(row for row in table.task.buckets if row.frames == 1 and row.resolution == "256px")
    # 16 channels of 32 x 32 latents, three times (whole, first and last frame), 512 x 4096 of text and 768 pooled.
    wide, _ = table.largest_clip(image)
    assert sample_bytes(table, image) == 2 * (3 * wide * table.shape.patch_channels + 512 * 4096 + 768)


@pytest.fixture(scope="module")
def examples_run():
    from pathlib import Path

    import yaml

    text = (Path(__file__).parents[4] / "manifests/examples/open-sora-2.yaml").read_text()
    return parse_run(yaml.safe_load(text))
