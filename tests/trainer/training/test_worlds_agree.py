"""Real worlds over gloo with DeepSpeed: neither their size nor their deaths change what is learned.

Two worlds of different size add the same float32 numbers in another order, so their weights differ by rounding alone.
AdamW divides a gradient by its own size, so what counts is how many digits of it are rounded, and the size of a step:
three digits of the seven are lost at most in 8 steps, a thousandth of one step. Equal worlds must agree in every bit.
"""

from __future__ import annotations

import pytest
import torch
from support.at_length import at_length
from support.training_worlds import (
    LEARNING_RATE,
    Plan,
    commit_of,
    difference,
    final_weights,
    make_latents,
    run_world,
    train_config,
    trained_ids,
)
from support.world_ends import assert_same_training

from videotrain_api.records import CheckpointRecord
from videotrain_api.resource.stages import ParallelLayout
from videotrain_api.resource.trainrun import CheckpointPolicy
from videotrain_api.vocabulary import ExitCode

ROUNDING = 1e-3 * LEARNING_RATE
LOSS = 5e-6
"""Relative: 40 roundings, since a loss is a mean of thousands of squares, of weights that differ by rounding."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory, latents):
    """One process, never disturbed: the yardstick."""
    folder = tmp_path_factory.mktemp("alone")
    result = run_world(folder, train_config(folder, latents), 1)
    assert result.outcomes == ["completed"], result.outcomes
    return folder, result


@pytest.mark.numeric
@pytest.mark.parametrize("size", [2, 4])
def test_worlds_of_any_size_learn_the_same_from_the_same_samples(tmp_path, latents, alone, size):
    result = run_world(tmp_path, train_config(tmp_path, latents), size)
    assert result.outcomes == ["completed"] * size, result.outcomes
    assert commit_of(tmp_path, 8).order_sha256 == commit_of(alone[0], 8).order_sha256
    assert difference(final_weights(tmp_path), final_weights(alone[0])) < ROUNDING
    assert [step.loss for step in result.steps] == pytest.approx([step.loss for step in alone[1].steps], rel=LOSS)
    assert [step.samples for step in result.steps] == [step.samples for step in alone[1].steps]
    assert [step.model_flops for step in result.steps] == [step.model_flops for step in alone[1].steps]


def test_all_ranks_tell_the_same_story(tmp_path, latents):
    result = run_world(tmp_path, train_config(tmp_path, latents, steps=2), 2)
    told = [
        [(s.step, s.loss, s.gradient_norm, s.samples, s.tokens, s.bucket, s.world_spread) for s in steps]
        for steps in (result.of_steps(0), result.of_steps(1))
    ]
    assert told[0] == told[1]
    assert [len(found) for found in told] == [2, 2]


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("engine", "size"),
    [
        ({"zero_stage": 0}, 2),
        at_length({"zero_stage": 1}, 2),
        ({"zero_stage": 2}, 3),
        ({"zero_stage": 3}, 3),
        ({"engine": "fsdp2"}, 3),
    ],
)
def test_every_engine_learns_what_one_process_learns(tmp_path, latents, alone, engine, size):
    layout = ParallelLayout(micro_batches_per_step=4, **engine)
    result = run_world(tmp_path, train_config(tmp_path, latents, parallel=layout), size)
    assert result.outcomes == ["completed"] * size, result.outcomes
    assert commit_of(tmp_path, 8).order_sha256 == commit_of(alone[0], 8).order_sha256
    assert difference(final_weights(tmp_path), final_weights(alone[0])) < ROUNDING


@pytest.mark.numeric
@pytest.mark.parametrize(
    "rows", [at_length(("full", "full")), at_length(("selective", "selective")), ("full", "selective")]
)
@pytest.mark.parametrize(("stage", "size", "bound"), [(1, 1, 0.0), (3, 2, ROUNDING)])
def test_recomputed_blocks_learn_what_stored_ones_learn(tmp_path, latents, alone, stage, size, bound, rows):
    layout = ParallelLayout(micro_batches_per_step=4, zero_stage=stage)
    config = train_config(tmp_path, latents, parallel=layout)
    table = config.stage.train.buckets
    buckets = [row.model_copy(update={"recompute": policy}) for row, policy in zip(table, rows, strict=True)]
    result = run_world(tmp_path, train_config(tmp_path, latents, parallel=layout, buckets=buckets), size)
    assert result.outcomes == ["completed"] * size, result.outcomes
    assert difference(final_weights(tmp_path), final_weights(alone[0])) <= bound


def test_more_recomputed_blocks_than_the_model_has_are_refused(tmp_path, latents):
    layout = ParallelLayout(micro_batches_per_step=4, recompute="full", checkpoint_double_blocks=2)
    result = run_world(tmp_path, train_config(tmp_path, latents, parallel=layout), 1)
    assert result.codes == [int(ExitCode.CONFIG)]
    assert "train.parallel.checkpointDoubleBlocks: 2" in result.outcomes[0]


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("before", "after"),
    [
        at_length({"zero_stage": 0}, {"zero_stage": 1}),
        at_length({"zero_stage": 1}, {"zero_stage": 3}),
        ({"zero_stage": 3}, {"engine": "fsdp2"}),
        ({"engine": "fsdp2"}, {"zero_stage": 2}),
    ],
)
def test_a_checkpoint_of_one_engine_is_continued_by_another(tmp_path, latents, alone, before, after):
    def config(engine):
        return train_config(tmp_path, latents, parallel=ParallelLayout(micro_batches_per_step=4, **engine))

    assert run_world(tmp_path, config(before), 2, Plan(drain_during=4)).outcomes == ["drained"] * 2
    assert run_world(tmp_path, config(after), 4, Plan(generation=2)).outcomes == ["completed"] * 4
    assert difference(final_weights(tmp_path), final_weights(alone[0])) < ROUNDING


@pytest.mark.numeric
def test_micro_batches_that_do_not_divide_evenly_give_the_same_gradient(tmp_path, latents):
    layout = ParallelLayout(micro_batches_per_step=3)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, size in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        result = run_world(folder, train_config(folder, latents, parallel=layout), size)
        assert result.outcomes == ["completed"] * size, result.outcomes
    assert commit_of(folders[0], 8).order_sha256 == commit_of(folders[1], 8).order_sha256
    assert difference(final_weights(folders[0]), final_weights(folders[1])) < ROUNDING


@pytest.mark.numeric
def test_a_drained_and_resumed_run_equals_an_undisturbed_one_in_every_bit(tmp_path, latents, alone):
    config = train_config(tmp_path, latents)
    first = run_world(tmp_path, config, 1, Plan(drain_during=5))
    assert (first.outcomes, first.steps[-1].step) == (["drained"], 5)
    assert [record.step for record in first.checkpoints] == [3, 5]
    second = run_world(tmp_path, config, 1, Plan(generation=2))
    assert second.started.resumed_step == 5
    assert [step.step for step in second.steps] == [6, 7, 8]
    assert [step.loss for step in second.steps] == [step.loss for step in alone[1].steps[5:]]
    assert difference(final_weights(tmp_path), final_weights(alone[0])) == 0.0


@pytest.mark.numeric
def test_a_killed_run_goes_on_in_another_world_and_no_sample_is_lost_or_repeated(tmp_path, latents, alone):
    config = train_config(tmp_path, latents)
    killed = run_world(tmp_path, config, 4, Plan(kill_after=5))
    assert killed.codes[-1] == -9
    assert set(killed.codes[:-1]) == {int(ExitCode.PEER_LOST)}, killed.outcomes
    resumed = run_world(tmp_path, config, 2, Plan(generation=2))
    assert resumed.outcomes == ["completed"] * 2, resumed.outcomes
    assert resumed.started.resumed_step == 3
    assert_same_training(tmp_path, alone[0], ROUNDING)


@pytest.mark.numeric
def test_bf16_trains_keeps_full_precision_and_survives_a_change_of_world(tmp_path, latents):
    folders = [tmp_path / "whole", tmp_path / "broken"]
    for folder in folders:
        folder.mkdir()
    assert run_world(folders[0], train_config(folders[0], latents, precision="bf16"), 2).outcomes == ["completed"] * 2
    config = train_config(folders[1], latents, precision="bf16")
    assert run_world(folders[1], config, 2, Plan(drain_during=4)).outcomes == ["drained"] * 2
    assert run_world(folders[1], config, 1, Plan(generation=2)).outcomes == ["completed"]
    weights = [final_weights(folder) for folder in folders]
    assert {tensor.dtype for tensor in weights[0].values()} == {torch.bfloat16}
    # Gradients are bf16 sums here, so the order of adding shows: half of the eight steps may go another way.
    assert difference(*weights) < 4 * LEARNING_RATE


def test_a_checkpoint_is_due_by_steps_or_by_the_clock_of_one_rank_whichever_comes_first(tmp_path, latents):
    policy = CheckpointPolicy(every_steps=7, every_seconds=3000, keep_last=9)
    result = run_world(tmp_path, train_config(tmp_path, latents, checkpoint=policy), 2, Plan(hour_passes_after=2))
    assert result.outcomes == ["completed"] * 2, result.outcomes
    # Step 2 is told when step 3 is queued. So an hour has passed when step 4 is agreed on, and none again: the one
    # of step 4 began by the new clock.
    assert [record.step for record in result.checkpoints] == [4, 7, 8]
    assert [record.step for record in result.of(CheckpointRecord, 1)] == [4, 7, 8]


def test_a_start_tells_what_it_went_into(alone):
    started = alone[1].started
    assert list(started.phases_us) == ["claim", "data", "compile", "gradients", "engine", "weights", "ready"]
    assert min(started.phases_us.values()) >= 0


def test_a_finished_stage_is_told_as_finished_at_once(latents, alone):
    folder, _ = alone
    result = run_world(folder, train_config(folder, latents), 2, Plan(generation=9))
    assert result.outcomes == ["completed"] * 2
    assert result.steps == []
    assert (result.started.resumed_step, result.started.total_steps) == (8, 8)


def test_a_run_that_died_before_its_weights_were_exported_only_exports_them(tmp_path, latents):
    config = train_config(tmp_path, latents, steps=3)
    assert run_world(tmp_path, config, 1).outcomes == ["completed"]
    before = final_weights(tmp_path)
    (tmp_path / "stage/weights/model.safetensors").unlink()
    result = run_world(tmp_path, config, 2, Plan(generation=2))
    assert (result.outcomes, result.steps) == (["completed"] * 2, [])
    assert difference(final_weights(tmp_path), before) == 0.0


def test_a_damaged_checkpoint_is_told_and_the_one_before_continued_once_two_machines_agree(tmp_path, latents, alone):
    config = train_config(tmp_path, latents)
    assert run_world(tmp_path, config, 2, Plan(drain_during=7)).outcomes == ["drained"] * 2
    newest = sorted((tmp_path / "stage/checkpoints/step-00000007").glob("*.safetensors"))[1]
    newest.write_bytes(newest.read_bytes()[:-4])
    one = run_world(tmp_path, config, 1, Plan(generation=2, saved_step=7, nodes=("one",)))
    assert one.codes == [int(ExitCode.CHECKPOINT)], one.outcomes
    assert "no other machine has read the same" in one.outcomes[0]
    result = run_world(tmp_path, config, 1, Plan(generation=3, saved_step=7, nodes=("two",)))
    assert result.outcomes == ["completed"], result.outcomes
    assert result.started.resumed_step == 6
    assert "step-00000007" in result.started.skipped_checkpoints[0]
    assert commit_of(tmp_path, 8).order_sha256 == commit_of(alone[0], 8).order_sha256


def test_less_than_is_known_to_be_saved_is_not_continued(tmp_path, latents):
    config = train_config(tmp_path, latents)
    result = run_world(tmp_path, config, 1, Plan(saved_step=6))
    assert result.codes == [int(ExitCode.STORAGE)], result.outcomes
    assert "step 6 was saved, and the newest checkpoint that is found is of step 0" in result.outcomes[0]
    assert not (tmp_path / "stage/checkpoints").exists()


def test_an_older_generation_that_comes_back_is_shut_out(tmp_path, latents):
    config = train_config(tmp_path, latents)
    assert run_world(tmp_path, config, 1, Plan(generation=5, drain_during=2)).outcomes == ["drained"]
    result = run_world(tmp_path, config, 1, Plan(generation=4))
    assert result.codes == [int(ExitCode.FENCED)], result.outcomes


def test_a_world_that_is_larger_than_the_micro_batches_is_refused(tmp_path, latents):
    result = run_world(tmp_path, train_config(tmp_path, latents, parallel=ParallelLayout(micro_batches_per_step=1)), 2)
    assert result.codes == [int(ExitCode.CONFIG)] * 2
    assert "parallel.microBatchesPerStep" in result.outcomes[0]


def test_a_loss_that_is_not_finite_ends_the_world_before_anything_is_saved(tmp_path):
    result = run_world(tmp_path, train_config(tmp_path, make_latents(tmp_path, broken=True)), 2)
    assert set(result.codes) == {int(ExitCode.DIVERGED)}, result.outcomes
    assert "the loss is nan; lower optimizer.learningRate" in result.outcomes[0]
    assert not (tmp_path / "stage/checkpoints").exists()


def test_a_damaged_sample_has_the_same_stand_in_in_every_world(tmp_path):
    latents = make_latents(tmp_path)
    shard = next((tmp_path / "latents/shards").glob("64px-8f-*"))
    data = bytearray(shard.read_bytes())
    data[512 + 300] ^= 1  # in the first sample, behind its tar header
    shard.write_bytes(bytes(data))
    digests, ids = [], []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        result = run_world(folder, train_config(folder, latents), size)
        assert result.outcomes == ["completed"] * size, result.outcomes
        digests.append(commit_of(folder, 8).order_sha256)
        ids.append(trained_ids(folder, commit_of(folder, 8)))
    assert digests[0] == digests[1]
    assert "0-00" not in ids[0]
