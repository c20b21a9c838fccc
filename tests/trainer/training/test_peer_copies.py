"""Real worlds that lose a pod: with copies in memory at most the steps since the last copy are lost, and no sample.

Two pods of two ranks. A pod's memory is a folder; who loses the pod loses the folder.
"""

from __future__ import annotations

import shutil

import pytest
from support.training_worlds import (
    LEARNING_RATE,
    Plan,
    run_world,
    train_config,
)
from support.world_ends import assert_same_training

from videotrain_api.resource.stages import ParallelLayout
from videotrain_api.resource.trainrun import CheckpointPolicy, PeerCopies

ROUNDING = 1e-3 * LEARNING_RATE
"""As in test_worlds_agree."""
PODS = ("a", "b")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, latents):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_world(folder, train_config(folder, latents), 1).outcomes == ["completed"]
    return folder


def config(folder, latents, every=2, stored=3, **changes):
    policy = CheckpointPolicy(every_steps=stored, keep_last=9, peer_copies=PeerCopies(every_steps=every))
    return train_config(folder, latents, checkpoint=policy, **changes)


def lose(folder, pod):
    shutil.rmtree(folder / "memory" / pod)


def copies(folder, pod, rank):
    return sorted((folder / "memory" / pod).glob(f"*-{rank:05d}-*.copy"))


@pytest.mark.numeric
def test_a_lost_pod_costs_no_more_steps_than_there_are_between_two_copies(tmp_path, latents, undisturbed):
    layout = ParallelLayout(micro_batches_per_step=4, zero_stage=3)  # cuts every parameter; the others are of stage 2
    task = config(tmp_path, latents, stored=100, parallel=layout)
    killed = run_world(tmp_path, task, 4, Plan(kill_after=5, pods=PODS))
    assert killed.codes[-1] == -9
    lose(tmp_path, "b")
    resumed = run_world(tmp_path, task, 2, Plan(generation=2, pods=("a",)))
    assert resumed.outcomes == ["completed"] * 2, resumed.outcomes
    assert resumed.started.resumed_step in (4, 6)  # of the steps that were told, 5 was the last
    assert "copies" in resumed.started.phases_us
    # What went on from memory is stored at once, and at the end.
    assert [record.step for record in resumed.checkpoints] == [resumed.started.resumed_step, 8]
    assert list((tmp_path / "memory" / "a").iterdir()) == []
    assert_same_training(tmp_path, undisturbed, ROUNDING)


def test_copies_and_checkpoints_go_on_together_in_a_larger_world_that_is_killed_again(tmp_path, latents, undisturbed):
    task = config(tmp_path, latents, every=1, stored=4)
    assert run_world(tmp_path, task, 2, Plan(kill_after=2, pods=PODS)).codes[-1] == -9
    lose(tmp_path, "b")
    second = run_world(tmp_path, task, 4, Plan(generation=2, kill_after=5, pods=("a", "c")))
    assert second.codes[-1] == -9
    assert second.started.resumed_step in (1, 2)
    lose(tmp_path, "a")
    third = run_world(tmp_path, task, 2, Plan(generation=3, pods=("c", "d")))
    assert third.outcomes == ["completed"] * 2, third.outcomes
    assert third.started.resumed_step in (4, 5)
    assert_same_training(tmp_path, undisturbed, ROUNDING)


def test_with_the_peer_lost_as_well_the_newest_checkpoint_is_continued(tmp_path, latents, undisturbed):
    task = config(tmp_path, latents)
    assert run_world(tmp_path, task, 4, Plan(kill_after=5, pods=PODS)).codes[-1] == -9
    for pod in PODS:
        lose(tmp_path, pod)
    resumed = run_world(tmp_path, task, 2, Plan(generation=2, saved_step=3, pods=("c",)))
    assert resumed.outcomes == ["completed"] * 2, resumed.outcomes
    assert resumed.started.resumed_step == 3
    assert "copies" not in resumed.started.phases_us
    assert_same_training(tmp_path, undisturbed, ROUNDING)


def test_a_damaged_copy_is_refused_and_the_newest_checkpoint_continued(tmp_path, latents, undisturbed):
    task = config(tmp_path, latents)
    assert run_world(tmp_path, task, 4, Plan(kill_after=5, pods=PODS)).codes[-1] == -9
    lose(tmp_path, "b")
    for path in copies(tmp_path, "a", 3):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    resumed = run_world(tmp_path, task, 2, Plan(generation=2, saved_step=3, pods=("a",)))
    assert resumed.outcomes == ["completed"] * 2, resumed.outcomes
    assert resumed.started.resumed_step == 3
    assert_same_training(tmp_path, undisturbed, ROUNDING)


def test_a_stage_that_begins_anew_by_order_takes_no_copies(tmp_path, latents, undisturbed):
    task = config(tmp_path, latents, stored=100)
    assert run_world(tmp_path, task, 2, Plan(kill_after=5, pods=PODS)).codes[-1] == -9
    resumed = run_world(tmp_path, task, 2, Plan(generation=2, restore=False, pods=PODS))
    assert resumed.outcomes == ["completed"] * 2, resumed.outcomes
    assert resumed.started.resumed_step == 0
    assert_same_training(tmp_path, undisturbed, ROUNDING)
