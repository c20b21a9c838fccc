"""Exported folders in diffusers' own classes, at sizes that a seed draws: the same numbers up to rounding."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from support.diffusers_models import (
    diffusers_autoencoder,
    diffusers_transformer,
    random_autoencoder,
    random_inputs,
    random_transformer,
    relative,
    run_diffusers,
)
from support.numerics import assert_near

from videotrain_trainer import models
from videotrain_trainer.diffusion.flow_matching import shift_alpha
from videotrain_trainer.diffusion.sampler import time_grid

pytestmark = pytest.mark.numeric

ROUNDING = 2e-4
"""In standard deviations of the output: a sinusoid whose angles of up to 1000 are rounded in another order moves it by
a tenth of that, and by less than a float32 has digits there."""
SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_diffusers_transformer_computes_what_ours_does(seed, tmp_path):
    ours = random_transformer(seed)
    models.export_diffusers(tmp_path, ours, random_autoencoder(seed))
    inputs = random_inputs(ours.config, seed)
    assert relative(run_diffusers(diffusers_transformer(tmp_path), inputs), ours(**inputs)) < ROUNDING


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_diffusers_autoencoder_codes_as_ours_does(seed, tmp_path):
    ours = random_autoencoder(seed)
    models.export_diffusers(tmp_path, random_transformer(seed), ours)
    theirs = diffusers_autoencoder(tmp_path)
    frames, rows, columns = 1 + 4 * (seed % 3), 16 * (1 + seed % 2), 16 * (1 + seed // 2 % 2)
    pixels = torch.rand(1, 3, frames, rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latent = models.encode(ours, pixels)
    assert relative(theirs.encode(pixels).latent_dist.mean * theirs.config.scaling_factor, latent) < ROUNDING
    assert relative(theirs.decode(latent / theirs.config.scaling_factor).sample, models.decode(ours, latent)) < ROUNDING


@pytest.mark.parametrize("seed", SEEDS)
def test_diffusers_scheduler_takes_the_times_of_our_grid(seed, tmp_path):
    models.export_diffusers(tmp_path, random_transformer(seed), random_autoencoder(seed))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    draw = np.random.default_rng(seed)
    steps, tokens, frames = (int(draw.integers(low, high)) for low, high in ((1, 60), (16, 4000), (1, 33)))
    alpha = shift_alpha(tokens, frames)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], mu=alpha)
    assert_near(scheduler.sigmas, time_grid(steps, alpha), 16)  # of times up to 1, shifted by a quotient


@pytest.mark.parametrize("seed", SEEDS)
def test_what_diffusers_reads_and_writes_again_comes_back(seed, tmp_path):
    ours, coder = random_transformer(seed), random_autoencoder(seed)
    models.export_diffusers(tmp_path / "ours", ours, coder)
    diffusers_transformer(tmp_path / "ours").save_pretrained(tmp_path / "theirs/transformer", max_shard_size="100KB")
    diffusers_autoencoder(tmp_path / "ours").save_pretrained(tmp_path / "theirs/vae")
    back = models.import_diffusers(tmp_path / "theirs")
    assert back.transformer.config == ours.config
    assert back.autoencoder.config == coder.config
    same = {
        name for name, value in ours.state_dict().items() if torch.equal(value, back.transformer.state_dict()[name])
    }
    # Two biases of ours are one of theirs, and diffusers does not keep the metadata that tell them apart.
    merged = {"img_in.bias", "cond_in.bias"} if ours.config.cond_embed else set()
    assert same | merged == set(ours.state_dict())
