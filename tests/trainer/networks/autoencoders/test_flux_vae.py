"""FLUX.1's picture autoencoder: sizes and names as published, numbers beside another implementation."""

import re

import pytest
import torch
from support.numerics import assert_as_exact, in_float64

from videotrain_trainer.networks.autoencoders.flux_vae import SCALE, SHIFT, PictureVAE, PictureVAEConfig

pytestmark = pytest.mark.numeric

TINY = PictureVAEConfig(latent_channels=4, width=32, multipliers=(1, 2), blocks=2)


def test_the_full_size_has_the_published_tensors():
    with torch.device("meta"):
        model = PictureVAE(PictureVAEConfig())
    state = model.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 83_819_683
    assert len(state) == 244
    shapes = {
        "encoder.down.1.block.0.nin_shortcut.weight": [256, 128, 1, 1],
        "encoder.down.2.downsample.conv.weight": [512, 512, 3, 3],
        "encoder.mid.attn_1.proj_out.bias": [512],
        "encoder.conv_out.weight": [32, 512, 3, 3],
        "decoder.conv_in.weight": [512, 16, 3, 3],
        "decoder.up.0.block.0.nin_shortcut.weight": [128, 256, 1, 1],
        "decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
        "decoder.norm_out.weight": [128],
    }
    assert {name: list(state[name].shape) for name in shapes} == shapes


def test_pictures_and_clips_go_through_frame_by_frame():
    torch.manual_seed(1)
    model = PictureVAE(TINY).eval()
    clip = torch.rand(2, 3, 3, 16, 24) * 2 - 1
    one = (slice(1, None), slice(None), slice(1, 2))  # the second frame of the second clip
    with torch.no_grad():
        latent = model.encode(clip)
        assert latent.shape == (2, 4, 3, 8, 12)
        assert_as_exact(model.encode(clip[one]), latent[one], in_float64(model, clip[one], method="encode"))
        pixels = model.decode(latent)
        assert pixels.shape == clip.shape
        assert_as_exact(model.decode(latent[one]), pixels[one], in_float64(model, latent[one], method="decode"))
        mean = model.encoder(clip[:, :, 0])[:, :4]
    exact = in_float64(model, clip[:, :, :1], method="encode")[:, :, 0]
    assert_as_exact(latent[:, :, 0], (mean - SHIFT) * SCALE, exact)


def name_elsewhere(name, levels):
    """Our name of a tensor in diffusers."""
    rules = [
        (r"encoder\.down\.(\d+)\.block", r"encoder.down_blocks.\1.resnets"),
        (r"encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0"),
        (r"mid\.block_1", "mid_block.resnets.0"),
        (r"mid\.block_2", "mid_block.resnets.1"),
        (r"mid\.attn_1\.norm", "mid_block.attentions.0.group_norm"),
        (r"mid\.attn_1\.proj_out", "mid_block.attentions.0.to_out.0"),
        (r"mid\.attn_1\.([qkv])\b", r"mid_block.attentions.0.to_\1"),
        ("nin_shortcut", "conv_shortcut"),
        ("norm_out", "conv_norm_out"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    up = re.match(r"decoder\.up\.(\d+)\.(block|upsample)", name)
    if up:
        kind = "resnets" if up[2] == "block" else "upsamplers.0"
        name = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{kind}{name[up.end() :]}"
    return name


def test_numbers_are_those_of_another_implementation_with_the_same_weights():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    model = PictureVAE(TINY).eval()
    other = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=2,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    expected = other.state_dict()
    renamed = {name_elsewhere(name, 2): tensor for name, tensor in model.state_dict().items()}
    other.load_state_dict({name: tensor.reshape(expected[name].shape) for name, tensor in renamed.items()})
    picture = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        mean = other.encode(picture).latent_dist.mean
        latent = model.encode(picture[:, :, None])
        encoded = in_float64(model, picture[:, :, None], method="encode")
        assert_as_exact(latent[:, :, 0], (mean - SHIFT) * SCALE, encoded[:, :, 0])
        decoded = in_float64(model, latent, method="decode")
        assert_as_exact(
            model.decode(latent)[:, :, 0], other.decode(latent[:, :, 0] / SCALE + SHIFT).sample, decoded[:, :, 0]
        )
