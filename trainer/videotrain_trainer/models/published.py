"""Sizes of models from configurations that other projects publish: Open-Sora's and FLUX's, and diffusers' files.

Fields that say where weights lie or how a model is trained are read over; any other one that is unknown is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from videotrain_api.config.presets import complete_autoencoder
from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.schema import ManifestError
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.flux_vae import SCALE, SHIFT, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAEConfig
from videotrain_trainer.networks.autoencoders.tiling import Tiling
from videotrain_trainer.networks.build import autoencoder_config
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.weights import ModelConfig
from videotrain_trainer.networks.weights.configuration import described_by_class

FLUX_CHANNELS = 16
"""Latent channels of the autoencoders of FLUX.1 and HunyuanVideo, on whose latents published transformers work."""
_NOT_SIZES = (
    "type",
    "model_type",
    "from_pretrained",
    "cache_dir",
    "strict_load",
    "from_scratch",
    "is_training",
    "grad_ckpt_settings",
    "use_slicing",
    "dropout",
)
"""Where weights lie, and how a model is trained."""


def described(fields: Mapping[str, Any], latent_channels: int | None = None) -> ModelConfig:
    """Sizes of the model that a published dictionary describes.

    Args:
        fields: of a dictionary `model`, `ae`, `img_flux` or `img_flux_ae` of Open-Sora, of FLUX.1's own parameters, or
            of a `config.json` of diffusers.
        latent_channels: of the autoencoder, which diffusers' configuration of a transformer does not tell.

    Raises:
        ConfigError: a field is missing or unknown, or the sizes do not fit together.
    """
    kind, name = fields.get("type", "flux"), fields.get("_class_name")
    what = f"a published configuration of {name or kind!r}"
    if name is not None:
        return described_by_class(fields, what, latent_channels or FLUX_CHANNELS).config
    readers = {"flux": _flux, "hunyuan_vae": _hunyuan, "dc_ae": _dc_ae, "autoencoder_2d": _picture}
    if kind not in readers:
        raise ConfigError(f"type {kind!r} of a published configuration is unknown; allowed: {', '.join(readers)}")
    sizes = {name: value for name, value in fields.items() if name not in _NOT_SIZES}
    try:
        return readers[kind](sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}: {error}") from error


def _flux(fields: dict[str, Any]) -> ModelConfig:
    out = fields.pop("out_channels", None)
    if out not in (None, fields.get("in_channels")):
        raise ValueError(f"out_channels {out} must be in_channels {fields.get('in_channels')}")
    return MMDiTConfig.from_published(fields)


def _hunyuan(fields: dict[str, Any]) -> ModelConfig:
    given = _HUNYUAN_DEFAULTS | fields
    _check_names(fields, _HUNYUAN_DEFAULTS)
    widths, layers = tuple(given["block_out_channels"]), int(given["layers_per_block"])
    fixed = {"act_fn": "silu", "mid_block_add_attention": True, "time_compression_ratio": 4, "channel": False}
    fixed |= {"spatial_compression_ratio": 2 ** (len(widths) - 1), "out_channels": given["in_channels"]}
    odd = {name: given[name] for name, value in fixed.items() if given[name] != value}
    if odd:
        raise ValueError(f"{odd}: allowed are { ({name: fixed[name] for name in odd}) }")
    pixels = given["sample_size"] if given["use_spatial_tiling"] else None
    return HunyuanVAEConfig(
        latent_channels=int(given["latent_channels"]),
        widths=widths,
        depths=(layers,) * len(widths),
        decoder_depths=(layers + 1,) * len(widths),
        norm_groups=int(given["norm_num_groups"]),
        scaling_factor=float(given["scale_factor"]),
        shift_factor=float(given["shift_factor"]),
        pixel_channels=int(given["in_channels"]),
        tiling=_tiles(pixels, given["sample_tsize"] if given["use_temporal_tiling"] else None, given),
    )


_HUNYUAN_DEFAULTS: dict[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scale_factor": 0.476986,
    "shift_factor": 0,
    "time_compression_ratio": 4,
    "spatial_compression_ratio": 8,
    "mid_block_add_attention": True,
    "block_out_channels": (128, 256, 512, 512),
    "sample_size": 256,
    "sample_tsize": 64,
    "use_spatial_tiling": False,
    "use_temporal_tiling": False,
    "tile_overlap_factor": 0.25,
    "channel": False,
}
"""What the published class takes for a field that its dictionary leaves out."""


def _dc_ae(fields: dict[str, Any]) -> ModelConfig:
    _check_names(fields, {"model_name": None, "scaling_factor": None, **_DC_AE_DEFAULTS})
    given = _DC_AE_DEFAULTS | fields
    try:
        spec = complete_autoencoder(AutoencoderSpec(preset=fields["model_name"]))
    except ManifestError as error:
        raise ValueError(f"model_name {fields['model_name']!r}: {error}") from error
    pixels = given["spatial_tile_size"] if given["use_spatial_tiling"] else None
    tiling = _tiles(pixels, given["temporal_tile_size"] if given["use_temporal_tiling"] else None, given)
    config = autoencoder_config(spec)
    return replace(config, tiling=tiling, scaling_factor=fields.get("scaling_factor") or config.scaling_factor)


_DC_AE_DEFAULTS: dict[str, Any] = {
    "use_spatial_tiling": False,
    "use_temporal_tiling": False,
    "spatial_tile_size": 256,
    "temporal_tile_size": 32,
    "tile_overlap_factor": 0.25,
}


def _tiles(pixels: int | None, frames: int | None, given: Mapping[str, Any]) -> Tiling | None:
    overlap = float(given["tile_overlap_factor"])
    return None if pixels is None and frames is None else Tiling(pixels=pixels, frames=frames, overlap=overlap)


def _picture(fields: dict[str, Any]) -> ModelConfig:
    fixed = {"in_channels": 3, "out_ch": 3, "scale_factor": SCALE, "shift_factor": SHIFT}
    _check_names(fields, {**fixed, "resolution": 256, "ch": 0, "ch_mult": (), "num_res_blocks": 0, "z_channels": 0})
    odd = {name: fields[name] for name, value in fixed.items() if fields.get(name, value) != value}
    if odd:
        raise ValueError(f"{odd}: allowed are { ({name: fixed[name] for name in odd}) }")
    return PictureVAEConfig(
        latent_channels=int(fields["z_channels"]),
        width=int(fields["ch"]),
        multipliers=tuple(fields["ch_mult"]),
        blocks=int(fields["num_res_blocks"]),
    )


def _check_names(fields: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(fields.keys() - known.keys())
    if unknown:
        raise ValueError(f"unknown fields {unknown}; allowed are {sorted(known)}")
