"""`config.json` of an autoencoder's folder in diffusers' form, from and to our sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.dc_ae import DCAEConfig
from videotrain_trainer.networks.autoencoders.flux_vae import NORM_GROUPS, SCALE, SHIFT, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAEConfig
from videotrain_trainer.networks.autoencoders.tiling import Tiling

HUNYUAN_CLASS = "AutoencoderKLHunyuanVideo"
PICTURE_CLASS = "AutoencoderKL"
DC_AE_CLASS = "VideoDCAE"
"""Of our own: diffusers has no class for it."""


def sizes_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a configuration from the JSON that `asdict` of it gives."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if given.get("tiling"):
        given["tiling"] = Tiling(**given["tiling"])
    return given


def dc_ae_fields(config: DCAEConfig) -> dict[str, Any]:
    """Our own fields."""
    return asdict(config)


def dc_ae_of_fields(fields: Mapping[str, Any]) -> DCAEConfig:
    """The inverse of `dc_ae_fields`."""
    return DCAEConfig(**sizes_of({name: value for name, value in fields.items() if name[0] != "_"}))


def hunyuan_fields(config: HunyuanVAEConfig) -> dict[str, Any]:
    """Fields of diffusers' class.

    Raises:
        ConfigError: that class cannot compute the model.
    """
    layers = config.depths[0]
    if set(config.depths) != {layers} or set(config.decoder_depths) != {layers + 1} or config.shift_factor:
        raise ConfigError(
            f"diffusers' {HUNYUAN_CLASS} has one depth n in all encoder levels and n + 1 in all decoder levels, and no "
            f"shift; this one has {config.depths}, {config.decoder_depths} and shift {config.shift_factor}"
        )
    levels = len(config.widths)
    return {
        "in_channels": config.pixel_channels,
        "out_channels": config.pixel_channels,
        "latent_channels": config.latent_channels,
        "down_block_types": ["HunyuanVideoDownBlock3D"] * levels,
        "up_block_types": ["HunyuanVideoUpBlock3D"] * levels,
        "block_out_channels": list(config.widths),
        "layers_per_block": layers,
        "act_fn": "silu",
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "spatial_compression_ratio": config.spatial_compression,
        "temporal_compression_ratio": config.temporal_compression,
        "mid_block_add_attention": True,
    }


def hunyuan_of_fields(fields: Mapping[str, Any]) -> HunyuanVAEConfig:
    """Sizes from the fields of diffusers' class."""
    widths, layers = tuple(fields["block_out_channels"]), int(fields["layers_per_block"])
    return HunyuanVAEConfig(
        latent_channels=int(fields["latent_channels"]),
        widths=widths,
        depths=(layers,) * len(widths),
        decoder_depths=(layers + 1,) * len(widths),
        norm_groups=int(fields["norm_num_groups"]),
        scaling_factor=float(fields["scaling_factor"]),
        pixel_channels=int(fields["in_channels"]),
    )


def picture_fields(config: PictureVAEConfig) -> dict[str, Any]:
    """Fields of diffusers' class for pictures."""
    levels = len(config.multipliers)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks,
        "act_fn": "silu",
        "norm_num_groups": NORM_GROUPS,
        "scaling_factor": SCALE,
        "shift_factor": SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    }


def picture_of_fields(fields: Mapping[str, Any]) -> PictureVAEConfig:
    """Sizes from the fields of diffusers' class for pictures. Raises ValueError if it is not FLUX.1's."""
    widths = [int(width) for width in fields["block_out_channels"]]
    fixed = {"scaling_factor": SCALE, "shift_factor": SHIFT, "use_quant_conv": False, "use_post_quant_conv": False}
    odd = {name: fields.get(name) for name, value in fixed.items() if fields.get(name) != value}
    if odd:
        raise ValueError(f"{odd}: only FLUX.1's autoencoder can be read, which has { ({n: fixed[n] for n in odd}) }")
    return PictureVAEConfig(
        latent_channels=int(fields["latent_channels"]),
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=int(fields["layers_per_block"]),
    )
