"""What /progress tells, folded from records."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.records import (
    AgentProgress,
    CheckpointRecord,
    CurationCounts,
    CurationRecord,
    EvaluationRecord,
    Measures,
    PhaseRecord,
    ProfileRecord,
    StartedRecord,
    StepRecord,
    ValidationRecord,
)
from videotrain_trainer.agent.progress import RATE_STEPS, SAVED_POINTS, ProgressFold

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def started(resumed_step):
    return StartedRecord(
        generation=2,
        stage="one",
        at=START,
        world_size=4,
        resumed_step=resumed_step,
        total_steps=1000,
        skipped_checkpoints=["step 90: crc32c does not fit"],
    )


def step(number, *, data_stall_us=0, checkpoint_us=0, seconds=2.0, end=None, **more):
    finish = at(seconds * number if end is None else end)
    return StepRecord(
        generation=2,
        stage="one",
        step=number,
        started_at=finish - timedelta(seconds=seconds),
        finished_at=finish,
        data_stall_us=data_stall_us,
        checkpoint_us=checkpoint_us,
        samples=8,
        tokens=4000,
        model_flops=3e9,
        loss=1 / number,
        **more,
    )


def saved(number):
    return CheckpointRecord(
        generation=2,
        stage="one",
        step=number,
        captured_at=at(number),
        committed_at=at(number + 1),
        uri=f"s3://b/{number}",
        bytes=1,
        stall_us=0,
    )


def fold(*records):
    result = ProgressFold(2, "one", START)
    for record in records:
        result.apply(record)
    return result


def test_who_is_slowest_most_often_is_told_with_how_much():
    slow = [(1, 3, 0.5), (2, 3, 0.1), (3, 0, 0.2), (4, 3, 0.3), (5, 1, 0.4), (6, 2, 0.1)]
    told = fold(started(0), *(step(n, slowest_rank=rank, straggler_ratio=ratio) for n, rank, ratio in slow)).snapshot()
    assert [(one.rank, one.steps, one.share, one.ratio) for one in told.stragglers] == [
        (3, 3, 0.5, 0.3),
        (0, 1, 0.1667, 0.2),
        (1, 1, 0.1667, 0.4),
    ]
    assert fold(started(0), step(1)).snapshot().stragglers == []


def test_a_rank_alone_is_no_straggler():
    alone = started(0).model_copy(update={"world_size": 1})
    assert fold(alone, step(1, slowest_rank=0, straggler_ratio=0.0)).snapshot().stragglers == []


def test_the_most_memory_of_the_last_steps_is_told():
    assert fold(started(0), step(1, memory_bytes=5), step(2, memory_bytes=4)).snapshot().memory_bytes == 5
    assert fold(started(0), step(1)).snapshot().memory_bytes is None


def test_utilisation_with_recomputation_and_without_padding_are_told_beside_mfu():
    known = ProgressFold(2, "one", START, ["NVIDIA H200"])
    for record in (
        started(0),
        step(1, hardware_flops=4e9, useful_flops=1.5e9),
        step(2, hardware_flops=4e9, useful_flops=1.5e9),
    ):
        known.apply(record)
    told = known.snapshot()
    assert told.hfu == pytest.approx(told.mfu * 4 / 3)
    assert told.useful_mfu == pytest.approx(told.mfu / 2)
    assert fold(started(0), step(1)).snapshot().hfu is None


def test_traces_are_told_and_make_the_answer_news():
    before, after = (fold(started(0), step(1), *more).snapshot() for more in ((), (trace(0), trace(8))))
    assert [(one.number, one.rank, one.uri, one.error) for one in after.profiles] == [
        (1, 0, "s3://b/0", ""),
        (1, 8, "s3://b/8", ""),
    ]
    answers = [AgentProgress(pod="w0", pod_uid="u", at=START, current=facts) for facts in (before, after)]
    assert answers[0].tag() != answers[1].tag()


def trace(rank):
    return ProfileRecord(
        generation=2, stage="one", number=1, rank=rank, at=START, first_step=1, last_step=3, uri=f"s3://b/{rank}"
    )


def test_a_generation_is_starting_until_its_workers_are_ready():
    assert fold().snapshot().state == "starting"
    assert fold(started(10)).snapshot().state == "running"


def test_the_step_is_the_resumed_one_until_a_step_is_done():
    assert fold(started(10)).snapshot().step == 10
    progress = fold(started(10), step(11)).snapshot()
    assert (progress.step, progress.resumed_step) == (11, 10)
    assert progress.first_step_at == progress.last_step_at == at(22)
    assert progress.skipped_checkpoints == ["step 90: crc32c does not fit"]


def test_rates_cover_the_newest_steps_of_the_whole_world():
    slow = [step(n, seconds=10.0, end=10.0 * n) for n in range(1, 6)]
    fast = [step(n, seconds=1.0, end=50.0 + n) for n in range(6, 6 + RATE_STEPS)]
    progress = fold(started(0), *slow, *fast).snapshot()
    assert progress.samples_per_second == 8
    assert progress.tokens_per_second == 4000
    assert progress.model_flops_per_second == 3e9


def test_what_curation_kept_and_dropped_is_told_once_its_set_is_there():
    counts = CurationCounts(clips=3, dropped={"still": 2})
    record = CurationRecord(generation=2, stage="one", at=START, counts=counts)
    assert fold(started(0)).snapshot().curation is None
    assert fold(started(0), record, record).snapshot().curation == counts


def test_a_validation_is_a_sign_of_life_and_its_loss_is_told():
    record = ValidationRecord(
        generation=2,
        stage="one",
        step=3,
        at=at(500),
        duration_us=1,
        samples=1,
        loss=0.25,
        bucket_losses={},
        times=[0.5],
        time_losses=[0.25],
    )
    folded = fold(started(0), step(3), record)
    assert folded.last_sign_at == at(500)
    assert folded.snapshot().validation_loss == 0.25
    assert folded.snapshot().last_step_at == at(6)
    assert fold(started(0), step(3)).snapshot().validation_loss is None


def test_a_phase_is_a_sign_of_life_beside_steps_until_a_step_comes_after_it():
    record = PhaseRecord(generation=2, stage="one", at=at(50), phase="export", done=1, total=2)
    folded = fold(started(10), step(11), record)
    assert folded.last_sign_at == at(50)
    assert (folded.snapshot().last_step_at, folded.snapshot().last_sign_at) == (at(22), at(50))
    assert fold(started(10), record).snapshot().last_sign_at == at(50)
    assert fold(started(10), record, step(30)).snapshot().last_sign_at is None


def test_what_is_found_while_units_are_done_counts_as_steps_to_do():
    record = PhaseRecord(generation=2, stage="one", at=at(50), phase="list", done=3, total=1234)
    assert fold(started(10), step(11), record).snapshot().total_steps == 1234


def test_no_rate_is_told_before_the_first_step():
    assert fold(started(0)).snapshot().samples_per_second is None


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=60),
    st.integers(0, 500),
    st.data(),
)
def test_a_checkpoint_that_is_committed_late_has_the_stalls_up_to_its_own_step(stalls, resumed, data):
    folded = fold(started(resumed))
    expected = {resumed: (0, 0)}
    pending = [resumed]
    for number, (stall, checkpoint) in enumerate(stalls, start=resumed + 1):
        folded.apply(step(number, data_stall_us=stall, checkpoint_us=checkpoint))
        before = expected[number - 1]
        expected[number] = (before[0] + stall, before[1] + checkpoint)
        pending.append(number)
        if data.draw(st.booleans()):
            point = data.draw(st.sampled_from(pending))
            pending = [later for later in pending if later > point] or [number]
            folded.apply(saved(point))
            newest = folded.snapshot().saved[-1]
            assert (newest.data_stall_us, newest.checkpoint_us) == expected[point]
    progress = folded.snapshot()
    assert (progress.data_stall_us, progress.checkpoint_us) == expected[resumed + len(stalls)]
    assert len(progress.saved) <= SAVED_POINTS


def test_what_was_measured_is_told_once_all_of_it_is_there():
    measures = Measures(clips=2, psnr=30.0)
    record = EvaluationRecord(generation=2, stage="one", at=START, measures=measures)
    assert fold(started(0)).snapshot().evaluation is None
    assert fold(started(0), record, record).snapshot().evaluation == measures
