import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.cost.autoencoder_flops import (
    autoencoder_parameters,
    autoencoder_train_flops,
    decoder_cost,
    encoder_cost,
    head_train_flops,
)
from videotrain_api.resource.architecture import AutoencoderTiling
from videotrain_trainer.networks.build import build_autoencoder

WHOLE = {"tiling": None}
SHALLOW = {"widths": [8, 32, 64, 64], "depths": [0, 0, 1, 1], "decoder_depths": [0, 1, 0, 1], "latent_channels": 32}
CASES = [
    ("hunyuan-vae", WHOLE, (9, 256, 256)),
    ("hunyuan-vae", WHOLE, (1, 256, 256)),
    ("hunyuan-vae", {}, (5, 320, 256)),
    ("hunyuan-vae", {}, (1, 224, 288)),
    ("dc-ae-f32t4c128", WHOLE, (32, 256, 256)),
    ("dc-ae-f32t4c256", {}, (36, 256, 256)),
    ("dc-ae-f32t4c128", {}, (1, 288, 256)),
    ("dc-ae-f32t4c128", {}, (1, 320, 224)),
    ("dc-ae-tiny", {"tiling": AutoencoderTiling(pixels=64, frames=8, overlap=0.5)}, (12, 96, 64)),
    ("dc-ae-tiny", SHALLOW, (16, 64, 96)),
    (
        "dc-ae-tiny",
        SHALLOW | {"widths": [8, 32, 32, 64, 64], "depths": [0] * 4 + [1], "decoder_depths": [1] * 5},
        (8, 64, 96),
    ),
    ("hunyuan-vae-tiny", {"tiling": AutoencoderTiling(pixels=32, frames=16)}, (25, 48, 32)),
    ("hunyuan-vae-tiny", {"tiling": AutoencoderTiling(pixels=64, frames=64)}, (129, 96, 64)),
]


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(("preset", "changes", "size"), CASES)
@torch.no_grad()
def test_the_formula_is_what_torch_counts_on_the_meta_device(preset, changes, size):
    spec = AUTOENCODERS[preset].model_copy(update=changes)
    frames, height, width = size
    with torch.device("meta"):
        model = build_autoencoder(spec)
        video = torch.empty(1, 3, *size)
        z = torch.empty(
            1,
            spec.latent_channels,
            spec.time.latent_frames(frames),
            height // spec.spatial_compression,
            width // spec.spatial_compression,
        )
        assert counted(lambda: model.encode(video)) == encoder_cost(spec, *size).flops
        assert counted(lambda: model.decode(z)) == decoder_cost(spec, *size).flops
        assert model.decode(z).shape == video.shape
    assert sum(p.numel() for p in model.parameters()) == autoencoder_parameters(spec)


def test_training_is_three_forward_passes_without_tiles():
    spec = AUTOENCODERS["dc-ae-tiny"]
    with torch.device("meta"):
        model = build_autoencoder(spec)
        forward = counted(lambda: model(torch.empty(1, 3, 8, 64, 64)))
    tiled = spec.model_copy(update={"tiling": AutoencoderTiling(pixels=32, frames=None, overlap=0.0)})
    assert autoencoder_train_flops(tiled, 8, 64, 64) == 3 * forward


def test_a_lone_head_is_one_more_frame_through_the_encoder():
    spec = AUTOENCODERS["dc-ae-tiny"]
    with torch.device("meta"):
        model, video = build_autoencoder(spec), torch.empty(1, 3, 8, 64, 64)
        plain, headed = (counted(lambda lone=lone: model(video, lone)) for lone in (False, True))
    assert head_train_flops(spec, 64, 64) == 3 * (headed - plain) > 0


def test_256_latent_channels_cost_seven_million_parameters_more():
    small, large = (autoencoder_parameters(AUTOENCODERS[f"dc-ae-f32t4c{n}"]) for n in (128, 256))
    assert (small, large) == (459_462_147, 459_462_147 + 2 * 27 * 1024 * 128 + 128)
