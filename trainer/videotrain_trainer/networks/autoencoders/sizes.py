"""Sizes of an autoencoder from the names and shapes of its file."""

from __future__ import annotations

import math

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders import picture_layouts
from videotrain_trainer.networks.autoencoders.dc_ae import DCAEConfig
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAEConfig
from videotrain_trainer.networks.autoencoders.layouts import LAYOUTS
from videotrain_trainer.networks.layout_rules import Shapes, count

PUBLISHED_GROUPS = 32
"""Groups of every norm of the published HunyuanVideo VAE."""


def dc_ae_sizes(layout: str, theirs: Shapes, what: str) -> DCAEConfig:
    """Sizes of a DC-AE's file; the scale of its latents is not in the shapes.

    Raises:
        ConfigError: tensors that tell the sizes are missing.
    """
    shapes = {LAYOUTS[layout].to_ours(name).name: shape for name, shape in theirs.items()}
    stages = _dc_stages(shapes)
    widths = [_vector(shapes, "encoder.project_in.conv.bias", what)]
    depths, decoder_depths = [], []
    for stage in range(stages):
        last = stage + 1 == stages
        layers = count(shapes, rf"encoder\.stages\.{stage}\.op_list\.(\d+)\..*")
        depths.append(layers if last else layers - 1)
        decoder_layers = count(shapes, rf"decoder\.stages\.{stage}\.op_list\.(\d+)\..*")
        decoder_depths.append(decoder_layers if last else decoder_layers - 1)
        if not last:
            widths.append(_vector(shapes, f"encoder.stages.{stage}.op_list.{layers - 1}.main.conv.bias", what))
    try:
        return DCAEConfig(
            latent_channels=_vector(shapes, "encoder.project_out.main.op_list.0.conv.bias", what),
            widths=tuple(widths),
            depths=tuple(depths),
            decoder_depths=tuple(decoder_depths),
            pixel_channels=_vector(shapes, "decoder.project_out.op_list.2.conv.bias", what),
        )
    except ValueError as error:
        raise ConfigError(f"{what}: its tensors are not those of a DC-AE: {error}") from error


def _dc_stages(shapes: Shapes) -> int:
    """Stages of the encoder; one without blocks follows if the last that has tensors ends with a downsampling."""
    found = count(shapes, r"encoder\.stages\.(\d+)\..*")
    layers = count(shapes, rf"encoder\.stages\.{found - 1}\.op_list\.(\d+)\..*")
    return found + (f"encoder.stages.{found - 1}.op_list.{layers - 1}.main.conv.bias" in shapes)


def hunyuan_sizes(_layout: str, shapes: Shapes, what: str) -> HunyuanVAEConfig:
    """Sizes of a HunyuanVideo VAE's file; groups of the norms and the scale of its latents are not in the shapes.

    Raises:
        ConfigError: tensors that tell the sizes are missing.
    """
    levels = count(shapes, r"encoder\.down_blocks\.(\d+)\..*")
    widths = [_vector(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.conv.bias", what) for i in range(levels)]
    depths = [count(shapes, rf"encoder\.down_blocks\.{i}\.resnets\.(\d+)\..*") for i in range(levels)]
    decoder = [count(shapes, rf"decoder\.up_blocks\.{i}\.resnets\.(\d+)\..*") for i in reversed(range(levels))]
    try:
        return HunyuanVAEConfig(
            latent_channels=_vector(shapes, "post_quant_conv.bias", what),
            widths=tuple(widths),
            depths=tuple(depths),
            decoder_depths=tuple(decoder),
            norm_groups=math.gcd(PUBLISHED_GROUPS, *widths),
            pixel_channels=_vector(shapes, "decoder.conv_out.conv.bias", what),
        )
    except ValueError as error:
        raise ConfigError(f"{what}: its tensors are not those of a HunyuanVideo VAE: {error}") from error


def picture_sizes(_layout: str, shapes: Shapes, what: str) -> PictureVAEConfig:
    """Sizes of the file of FLUX.1's picture autoencoder, in either layout.

    Raises:
        ConfigError: tensors that tell the sizes are missing.
    """
    try:
        return picture_layouts.picture_sizes(shapes)
    except (KeyError, IndexError) as error:
        raise ConfigError(f"{what}: missing: {error}, which tells a size of the autoencoder") from error


def _vector(shapes: Shapes, name: str, what: str) -> int:
    if name not in shapes:
        raise ConfigError(
            f"{what}: missing: {name}, which tells a width of the model; name the preset that the file belongs to, to "
            "have everything that is missing listed"
        )
    return math.prod(shapes[name])
