"""Tiles of pictures of every shape, beside diffusers' own HunyuanVideo autoencoder.

`hunyuan_vae_tiles.safetensors` holds what diffusers 0.42.1 gives at 224 x 288 in the published tiles (256 pixels, of
which 192 are kept) with the weights of the `hunyuan_vae` fixture: moments, and the rows of pixels behind the stride.
VIDEOTRAIN_REWRITE_GOLDEN=1 writes it again.
"""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.autoencoders import hunyuan_vae_of, tiny_dc_ae
from support.model_fixtures import FOLDER, Fixture
from support.numerics import apart

from videotrain_trainer.networks.autoencoders.tiling import Axis, TileCoder, Tiling

pytestmark = pytest.mark.numeric

STRIDE_ROWS = 192
NAME = "hunyuan_vae_tiles"
PUBLISHED = Tiling(pixels=256, frames=16)


@pytest.fixture(scope="module")
def found():
    return Fixture("hunyuan_vae")


def picture(frames, height, width):
    """Pixels in [-1, 1] that need no generator: three plaids whose phase moves with the frame."""
    t, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (frames, height, width)), indexing="ij")
    planes = [torch.sin(0.11 * (k + 1) * y + 0.3 * t) * torch.cos(0.07 * (k + 2) * x - 0.2 * t) for k in range(3)]
    return torch.stack(planes)[None].float()


def latents(frames, height, width):
    z = picture(frames, height // 8, width // 8)
    return torch.cat([z, -z[:, :1]], dim=1)


def theirs(found, tiling):
    """diffusers' class with the weights of the fixture and those tiles."""
    from diffusers import AutoencoderKLHunyuanVideo

    facts = found.facts["config"]
    model = AutoencoderKLHunyuanVideo(
        latent_channels=facts["latent_channels"],
        block_out_channels=tuple(facts["block_out_channels"]),
        layers_per_block=facts["layers_per_block"],
        norm_num_groups=facts["norm_num_groups"],
    )
    model.load_state_dict({name: value.float() for name, value in load_file(found.weights).items()})
    stride = round(tiling.pixels * (1 - tiling.overlap))
    model.enable_tiling(
        tile_sample_min_height=tiling.pixels,
        tile_sample_min_width=tiling.pixels,
        tile_sample_min_num_frames=tiling.frames,
        tile_sample_stride_height=stride,
        tile_sample_stride_width=stride,
        tile_sample_stride_num_frames=round(tiling.frames * (1 - tiling.overlap)),
    )
    return model.eval().requires_grad_(False)


def both(found, tiling, size):
    """(name, ours, diffusers') for moments and pixels, in float64: norms of a small tile magnify rounding."""
    ours = hunyuan_vae_of(found, tiling=tiling, scaling_factor=1.0).double()
    other, (frames, height, width) = theirs(found, tiling).double(), size
    mine, posterior = ours.posterior(picture(*size).double()), other.encode(picture(*size).double()).latent_dist
    z = latents((frames - 1) // 4 + 1, height, width).double()
    return [
        ("mean", mine.mean_BCTHW, posterior.mean),
        ("logvar", mine.logvar_BCTHW, posterior.logvar),
        ("pixels", ours.decode(z), other.decode(z).sample),
    ]


@pytest.mark.parametrize(
    ("tiling", "size"),
    [
        (PUBLISHED, (1, 224, 288)),
        (PUBLISHED, (1, 192, 352)),
        (PUBLISHED, (1, 272, 288)),
        (Tiling(pixels=32, frames=16), (33, 32, 56)),
        (Tiling(pixels=32, frames=16), (29, 40, 24)),
        (Tiling(pixels=64, frames=8, overlap=0.5), (17, 56, 72)),
    ],
    ids=str,
)
def test_every_shape_is_cut_as_diffusers_cuts_it(found, tiling, size):
    for name, mine, other in both(found, tiling, size):
        assert mine.shape == other.shape, name
        assert apart(mine, other) <= 1e-6 * float(other.abs().max()), name


def rewritten(found):
    values = {name: value for name, _, value in both(found, PUBLISHED, (1, 224, 288))}
    values["pixels"] = values["pixels"][..., STRIDE_ROWS:, :]
    save_file({name: value.float().contiguous() for name, value in values.items()}, FOLDER / f"{NAME}.safetensors")
    facts = {"name": NAME, "tolerance": {"mean": 5e-5, "logvar": 5e-5, "pixels": 2e-4}, "diffusers": "0.42.1"}
    (FOLDER / f"{NAME}.json").write_text(json.dumps(facts, indent=1) + "\n")


def test_a_picture_with_one_side_between_stride_and_tile_has_the_published_values(found):
    if os.environ.get("VIDEOTRAIN_REWRITE_GOLDEN"):
        rewritten(found)
    expected = Fixture(NAME)
    model = hunyuan_vae_of(found, tiling=PUBLISHED, scaling_factor=1.0)
    posterior = model.posterior(picture(1, 224, 288))
    expected.check("mean", posterior.mean_BCTHW)
    expected.check("logvar", posterior.logvar_BCTHW)
    expected.check("pixels", model.decode(latents(1, 224, 288))[..., STRIDE_ROWS:, :])


@pytest.mark.parametrize("sides", [(224, 288), (288, 224), (192, 352), (256, 256), (512, 512)])
def test_sizes_of_tiles_follow_the_published_rule(sides):
    seen = []

    def code(z):
        seen.append(tuple(z.shape[-2:]))
        return z.repeat_interleave(8, 3).repeat_interleave(8, 4)

    rows, columns = (side // 8 for side in sides)
    TileCoder(8, Axis(4, causal=True), Tiling(pixels=256, frames=None)).decode(
        code, torch.zeros(1, 1, 1, rows, columns)
    )
    cut = max(rows, columns) > 32
    starts = [range(0, n, 24) if cut else range(1) for n in (rows, columns)]
    assert seen == [(min(32, rows - i), min(32, columns - j)) for i in starts[0] for j in starts[1]]


def test_the_dc_ae_cuts_both_sides_of_a_picture_that_is_too_wide():
    model, seen = tiny_dc_ae(tiling=Tiling(pixels=128, frames=None)), []
    model.encoder.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape[-2:])))
    z = model.encode(picture(1, 128, 160))
    assert seen == [(128, 128), (128, 64), (32, 128), (32, 64)]
    assert z.shape[-2:] == (4, 5)
