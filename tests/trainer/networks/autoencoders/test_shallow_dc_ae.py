"""A Video DC-AE may be less deep than the published one, and have stages that only resample."""

from __future__ import annotations

import pytest
import torch

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_trainer.networks.autoencoders.layouts import LAYOUTS, from_ours
from videotrain_trainer.networks.autoencoders.sizes import dc_ae_sizes
from videotrain_trainer.networks.build import autoencoder_config, build_autoencoder, initialize

SHAPES = [
    ([8, 32, 64, 64], [0, 0, 0, 0], [0, 0, 0, 0], 0),
    ([8, 32, 64, 64], [0, 0, 0, 0], [0, 0, 0, 1], 1),
    ([8, 32, 64, 64], [0, 0, 0, 1], [1, 0, 0, 0], 1),
    ([8, 32, 32, 64], [0, 1, 0, 0], [0, 1, 0, 1], 3),
    ([8, 16, 32, 64, 64], [1, 0, 0, 0, 1], [2, 0, 0, 1, 1], 5),
]
LAYOUT = "open-sora-dc-ae"


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    widths, depths, decoder_depths, blocks = request.param
    changes = {"widths": widths, "depths": depths, "decoder_depths": decoder_depths, "latent_channels": 32}
    return AUTOENCODERS["dc-ae-tiny"].model_copy(update=changes), blocks


def test_clips_and_pictures_pass_and_every_weight_learns(shape):
    spec, _ = shape
    model = build_autoencoder(spec)
    initialize(model, 1)
    side = 2 ** (len(spec.widths) - 1)
    assert spec.spatial_compression == side
    for frames in (8, 1):
        clip = torch.rand(1, 3, frames, 32, 64) * 2 - 1
        latent = model.encode(clip)
        assert latent.shape == (1, 32, max(1, frames // 4), 32 // side, 64 // side)
        out = model(clip)
        assert out.shape == clip.shape
        model.zero_grad()
        (out - clip).abs().mean().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_a_lone_head_is_the_latent_of_the_first_frame_by_itself(shape):
    spec, _ = shape
    model = build_autoencoder(spec.model_copy(update={"scaling_factor": 1.0}))
    initialize(model, 1)
    clip = torch.rand(1, 3, 8, 32, 64) * 2 - 1
    with torch.no_grad():
        head, whole = model.encode(clip[:, :, :1]), model.encode(clip)
        assert not torch.allclose(head, whole[:, :, :1])
        drawn = model.decode(torch.cat((head, whole[:, :, 1:]), dim=2))
        assert torch.equal(model(clip, lone_head=True), drawn)
        assert not torch.equal(model(clip), drawn)


def test_the_shapes_of_its_weights_tell_its_sizes(shape):
    spec, _ = shape
    weights = build_autoencoder(spec).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in from_ours(weights, LAYOUTS[LAYOUT]).items()}
    assert dc_ae_sizes(LAYOUT, shapes, "a file") == autoencoder_config(spec)


def test_all_blocks_but_the_last_at_the_pixels_can_be_computed_again(shape):
    spec, blocks = shape
    assert len(build_autoencoder(spec).recomputable_blocks()) == blocks
