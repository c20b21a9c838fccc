from __future__ import annotations

from functools import partial
from typing import get_args

import pytest
import torch
from support.training_worlds import (
    AUTOENCODER_LEARNING_RATE,
    Plan,
    autoencoder_config,
    commit_of,
    difference,
    final_weights,
    make_clips,
    run_world,
    store,
)

from videotrain_api.resource.stages import AutoencoderLayout, Bucket, LearningRatePiece, Optimizer, Recompute
from videotrain_api.vocabulary import ExitCode
from videotrain_trainer.data.pixels import PixelLoader
from videotrain_trainer.data.sets import open_clips
from videotrain_trainer.networks.build import SCALING_FACTOR, load_autoencoder
from videotrain_trainer.networks.weights import open_weights, read_metadata


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.numeric
def test_the_autoencoder_learns_the_same_in_every_world_and_engine_and_after_a_resize(tmp_path, clips):
    folders = [tmp_path / "one", tmp_path / "resized"]
    for folder in folders:
        folder.mkdir()
    # Some elements' gradients nearly cancel (1e-8 where others have 1e-2), so that much of them is rounding. AdamW
    # divides a gradient by its own size and epsilon: float32's first step is 0.16 of a step away from float64's with
    # an epsilon of 1e-8, and 1e-4 with this one.
    rate = [LearningRatePiece(value=AUTOENCODER_LEARNING_RATE)]
    optimizer = Optimizer(learning_rate=rate, epsilon=1e-4)
    config = partial(autoencoder_config, clips=clips, optimizer=optimizer, head_ratio=0.5)
    alone = run_world(folders[0], config(folders[0]), 1)
    assert alone.outcomes == ["completed"], alone.outcomes
    layout = AutoencoderLayout(micro_batches_per_step=2, engine="fsdp2")
    assert (
        run_world(folders[1], config(folders[1], parallel=layout), 2, Plan(drain_during=2)).outcomes == ["drained"] * 2
    )
    assert run_world(folders[1], config(folders[1]), 1, Plan(generation=2)).outcomes == ["completed"]
    assert commit_of(folders[0], 6).order_sha256 == commit_of(folders[1], 6).order_sha256
    # Convolutions add in another order when they have other neighbours in memory: a hundredth of a step.
    assert difference(final_weights(folders[0]), final_weights(folders[1])) < 0.01 * AUTOENCODER_LEARNING_RATE


def test_pictures_and_clips_are_mixed_as_asked(tmp_path, clips):
    flops = {}
    for ratio in (0.0, 0.5, 0.99):
        folder = tmp_path / str(ratio)
        folder.mkdir()
        result = run_world(folder, autoencoder_config(folder, clips, image_ratio=ratio, steps=4), 1)
        assert result.outcomes == ["completed"], result.outcomes
        flops[ratio] = [step.model_flops for step in result.steps]
    assert len(set(flops[0.0])) == 1
    assert len(set(flops[0.5])) > 1
    assert sum(flops[0.0]) > sum(flops[0.5]) > sum(flops[0.99])


def test_some_clips_begin_with_the_latent_of_their_first_frame_alone(tmp_path, clips):
    """As the sampler puts it there; a DC-AE's own latent of the first frames has seen four of them."""
    losses, flops = {}, {}
    for ratio in (0.0, 0.5, 1.0):
        folder = tmp_path / str(ratio)
        folder.mkdir()
        config = autoencoder_config(folder, clips, image_ratio=0.0, head_ratio=ratio, steps=4)
        result = run_world(folder, config, 1)
        assert result.outcomes == ["completed"], result.outcomes
        losses[ratio] = [step.loss for step in result.steps]
        flops[ratio] = [step.model_flops for step in result.steps]
    assert losses[0.0][0] != losses[1.0][0]
    assert len(set(flops[0.0])) == len(set(flops[1.0])) == 1
    assert sum(flops[0.0]) < sum(flops[0.5]) < sum(flops[1.0])


def test_a_clip_length_that_decodes_to_a_picture_is_refused(tmp_path, clips):
    bucket = Bucket(resolution="64px", frames=4, batch_size=1)
    result = run_world(tmp_path, autoencoder_config(tmp_path, clips, bucket=bucket), 1)
    assert result.codes == [int(ExitCode.CONFIG)]
    assert "autoencoder.bucket.frames" in result.outcomes[0]


def exported(folder):
    """Content of the final weights' file."""
    return (folder / "stage/weights/model.safetensors").read_bytes()


@pytest.mark.numeric
def test_latents_have_unit_scale_by_the_factor_that_the_stage_measured(tmp_path, clips):
    config = autoencoder_config(tmp_path, clips, steps=2)
    assert run_world(tmp_path, config, 2).outcomes == ["completed"] * 2
    model = load_autoencoder(config.autoencoder, exported(tmp_path), "file")
    assert model.config.scaling_factor != 1.0
    assert all(file.checksums for file in open_weights(exported(tmp_path)).files.values()), (
        "a later stage verifies them"
    )
    data = open_clips(store(), config)
    loader, squares = PixelLoader(store(), data, data.plan.start(), [[0, 1]] * len(data.plan.buckets), tmp_path), []
    for order, _ in zip(data.plan.walk(data.plan.start()), range(5), strict=False):
        with torch.no_grad():
            squares += [
                model.encode(loader.fetch(order, micro_batch).video_BCTHW).square().mean() for micro_batch in (0, 1)
            ]
    loader.close()
    assert torch.stack(squares).mean().sqrt().item() == pytest.approx(1.0, rel=0.1)


def test_a_scale_that_is_written_out_is_kept_with_the_weights(tmp_path, clips):
    config = autoencoder_config(tmp_path, clips, steps=1)
    spec = config.autoencoder.model_copy(update={"scaling_factor": 0.75})
    assert run_world(tmp_path, config.model_copy(update={"autoencoder": spec}), 1).outcomes == ["completed"]
    assert float(read_metadata(exported(tmp_path), "file")[SCALING_FACTOR]) == 0.75


@pytest.mark.numeric
def test_recomputing_activations_learns_the_same(tmp_path, clips):
    for policy in get_args(Recompute):
        folder = tmp_path / policy
        folder.mkdir()
        # The third step begins from weights and moments that both others have changed.
        config = autoencoder_config(
            folder, clips, steps=3, parallel=AutoencoderLayout(micro_batches_per_step=2, recompute=policy)
        )
        assert run_world(folder, config, 1).outcomes == ["completed"]
    # The same kernels see the same numbers again, so nothing may differ.
    plain = final_weights(tmp_path / "none")
    assert difference(plain, final_weights(tmp_path / "selective")) == 0.0
    assert difference(plain, final_weights(tmp_path / "full")) == 0.0
