"""The loss on held-out clips: never trained on, always asked the same, equal in every world."""

import itertools

import pytest
from support.at_length import at_length
from support.training_worlds import Plan, commit_of, run_world, train_config, trained_ids

from videotrain_api.config.stage_config import HeldOut, StagePaths
from videotrain_api.records import EvaluationRecord, StepRecord, ValidationRecord
from videotrain_api.resource.evaluation import EvaluateTask
from videotrain_api.resource.stages import Bucket, ParallelLayout, Stage, Validation
from videotrain_trainer.data.sets import open_latents
from videotrain_trainer.data.stage_samples import is_held_out
from videotrain_trainer.errors import DataError
from videotrain_trainer.training.validation_loss import spread, spread_over_groups, times_of

pytestmark = pytest.mark.numeric

SPEC = Validation(every_steps=3, share=0.4, max_samples=5, times=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents):
    folder = tmp_path_factory.mktemp("alone")
    result = run_world(folder, train_config(folder, latents, steps=8, validation=SPEC), 1)
    assert result.outcomes == ["completed"], result.outcomes
    return folder, result


def told(result, rank=0):
    return [(r.step, r.loss, r.bucket_losses, r.time_losses) for r in result.of(ValidationRecord, rank)]


def test_training_validates_as_often_as_asked_and_at_its_end(alone):
    records = alone[1].of(ValidationRecord)
    assert [record.step for record in records] == [3, 6, 8]
    last = records[-1]
    assert last.times == [0.25, 0.75]
    assert len(last.time_losses) == 2
    assert last.loss == pytest.approx(sum(last.time_losses) / 2)
    assert set(last.bucket_losses) == {"64px/8f/1:1", "64px/16f/1:1"}
    assert last.samples == 5
    assert last.duration_us > 0


def test_held_out_clips_are_never_trained_on(alone, latents):
    folder, _ = alone
    from support.training_worlds import store

    held_out = {f"clip-{number}-{index:02d}" for number in range(2) for index in range(10)}
    held_out = {clip for clip in held_out if is_held_out(clip, SPEC.share)}
    assert held_out
    trained = {f"clip-{uid}" for uid in trained_ids(folder, commit_of(folder, 8))}
    assert trained & held_out == set()
    data = open_latents(store(), train_config(folder, latents, validation=SPEC))
    assert {f"clip-{sample.bucket.uid(sample.number)}" for sample in data.held_out} <= held_out
    buckets = [sample.bucket.info.bucket for sample in data.held_out]
    assert buckets[0] != buckets[1]  # from the buckets in turn


@pytest.mark.parametrize("engine", [at_length({"zero_stage": 2}), {"zero_stage": 3}, at_length({"engine": "fsdp2"})])
def test_a_world_of_two_finds_the_losses_of_one(tmp_path, latents, alone, engine):
    layout = ParallelLayout(micro_batches_per_step=4, **engine)
    result = run_world(tmp_path, train_config(tmp_path, latents, steps=8, validation=SPEC, parallel=layout), 2)
    assert result.outcomes == ["completed"] * 2, result.outcomes
    assert told(result, 0) == told(result, 1)
    for mine, theirs in zip(told(result), told(alone[1]), strict=True):
        assert mine[0] == theirs[0]
        # 40 roundings: a mean of thousands of squares, of weights that differ by rounding.
        assert mine[1] == pytest.approx(theirs[1], rel=5e-6)
        assert mine[2] == pytest.approx(theirs[2], rel=5e-6)


def test_validation_changes_nothing_in_training(tmp_path, latents, alone):
    often = SPEC.model_copy(update={"every_steps": 1})
    result = run_world(tmp_path, train_config(tmp_path, latents, steps=8, validation=often), 1)
    assert [step.loss for step in result.steps] == [step.loss for step in alone[1].steps]
    both = {record.step: record.loss for record in result.of(ValidationRecord)}
    assert [both[record.step] for record in alone[1].of(ValidationRecord)] == [
        r.loss for r in alone[1].of(ValidationRecord)
    ]


def test_the_time_of_a_validation_belongs_to_no_step(alone):
    records = [r for r in alone[1].records[0] if isinstance(r, StepRecord | ValidationRecord)]
    for before, after in itertools.pairwise(records):
        if isinstance(before, ValidationRecord) and isinstance(after, StepRecord):
            assert after.started_at == before.at


def test_a_resumed_run_goes_on_with_the_same_validations(tmp_path, latents, alone):
    config = train_config(tmp_path, latents, steps=8, validation=SPEC)
    first = run_world(tmp_path, config, 1, Plan(drain_during=4))
    assert first.outcomes == ["drained"]
    second = run_world(tmp_path, config, 1, Plan(generation=2))
    assert told(first) + told(second) == told(alone[1])


def test_a_share_that_holds_nothing_out_is_refused_with_its_field(tmp_path, latents):
    from support.training_worlds import store

    nothing = SPEC.model_copy(update={"share": 1e-9})
    with pytest.raises(DataError, match=r"none of the stage's clips .* raise train.validation.share from 1e-09"):
        open_latents(store(), train_config(tmp_path, latents, validation=nothing))


def test_all_ranks_ask_equally_often_and_every_sample_is_asked():
    for samples in range(1, 12):
        for size in range(1, 6):
            ranks = [spread(samples, rank, size) for rank in range(size)]
            assert len({len(numbers) for numbers in ranks}) == 1
            assert {number for numbers in ranks for number in numbers} == set(range(samples))
    assert times_of(4) == [0.125, 0.375, 0.625, 0.875]


def test_ranks_that_share_sequences_are_asked_the_same_and_all_ranks_equally_often():
    for degrees in ([1, 2, 2, 4, 1], [4], [2, 4] * 5, [1]):
        ranks = [spread_over_groups(degrees, rank, 8) for rank in range(8)]
        assert len({len(numbers) for numbers in ranks}) == 1
        assert {number for numbers in ranks for number in numbers} == set(range(len(degrees)))
        for turn in range(len(ranks[0])):
            asked = [numbers[turn] for numbers in ranks]
            (degree,) = {degrees[number] for number in asked}
            assert all(len(set(asked[first : first + degree])) == 1 for first in range(0, 8, degree))


def test_a_stage_that_evaluates_asks_what_training_asked(tmp_path, latents):
    """Without a moving average the last validation has seen the very weights that are exported."""
    # The seed draws the clips that a row keeps, so another seed would ask others.
    rows = [Bucket(resolution="64px", frames=frames, batch_size=1, keep_probability=0.5) for frames in (8, 16)]
    config = train_config(tmp_path, latents, steps=4, validation=SPEC, ema_decay=None, buckets=rows)
    result = run_world(tmp_path, config, 1)
    assert result.outcomes == ["completed"], result.outcomes
    last = result.of(ValidationRecord)[-1]
    paths = StagePaths(output=f"file://{tmp_path}/measure", latents=latents, model_weights=f"file://{tmp_path}/stage")
    stage = Stage(name="measure", task="evaluate", evaluate=EvaluateTask(held_out="small"))
    held_out = HeldOut(stage=config.stage, seed=config.seed)
    measuring = config.model_copy(update={"stage": stage, "paths": paths, "held_out": held_out, "seed": 1})
    (told,) = run_world(tmp_path, measuring, 1).of(EvaluationRecord)
    # Another path through the same operations: roundings only.
    assert told.measures.validation_loss == pytest.approx(last.loss, rel=1e-4)
    assert told.measures.loss_by_bucket == pytest.approx(last.bucket_losses, rel=1e-4)
    assert list(told.measures.loss_by_time) == ["0.25", "0.75"]
    assert [*told.measures.loss_by_time.values()] == pytest.approx(last.time_losses, rel=1e-4)
