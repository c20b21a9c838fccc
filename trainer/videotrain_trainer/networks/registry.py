"""From resolved specifications to models, and their initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.autoencoders.tiling import Tiling
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Source, Weights, load_weights, open_weights

__all__ = [
    "SCALING_FACTOR",
    "Autoencoder",
    "autoencoder_config",
    "build_autoencoder",
    "build_transformer",
    "initialize",
    "load_autoencoder",
    "mmdit_config",
    "scaling_factor",
]

Value = TypeVar("Value")
Autoencoder = DCAE | HunyuanVAE

SCALING_FACTOR = "scaling_factor"
"""Metadata field of an autoencoder's weight file: the root mean square of its unscaled latents."""


def build_transformer(spec: TransformerSpec, autoencoder: AutoencoderSpec, text: TextEncoderSpec) -> MMDiT:
    """The transformer for latents of that autoencoder and features of that text encoder.

    Weights are torch's defaults; call `initialize` or `load_weights`. Works under `torch.device("meta")`.

    Raises:
        ConfigError: a field is unset or the sizes do not fit together.
    """
    try:
        return MMDiT(mmdit_config(spec, autoencoder, text))
    except ValueError as error:
        raise ConfigError(f"spec.model: {error}") from error


def mmdit_config(spec: TransformerSpec, autoencoder: AutoencoderSpec, text: TextEncoderSpec) -> MMDiTConfig:
    """Sizes of the transformer.

    Raises:
        ConfigError: a field of the specification is unset.
        ValueError: the sizes do not fit together.
    """
    patch = _set(spec.patch_size, "spec.model.patchSize")
    time, rows, columns = _set(spec.rope_axes, "spec.model.ropeAxes")
    return MMDiTConfig(
        in_channels=_set(autoencoder.latent_channels, "spec.autoencoder.latentChannels") * patch * patch,
        context_dim=text.context_dim,
        pooled_dim=text.pooled_dim,
        hidden_size=_set(spec.hidden_size, "spec.model.hiddenSize"),
        num_heads=_set(spec.num_heads, "spec.model.numHeads"),
        double_blocks=_set(spec.double_blocks, "spec.model.doubleBlocks"),
        single_blocks=_set(spec.single_blocks, "spec.model.singleBlocks"),
        mlp_ratio=_set(spec.mlp_ratio, "spec.model.mlpRatio"),
        rope_axes=(time, rows, columns),
        patch_size=patch,
        cond_embed=_set(spec.cond_embed, "spec.model.condEmbed"),
        guidance_embed=_set(spec.guidance_embed, "spec.model.guidanceEmbed"),
    )


def build_autoencoder(spec: AutoencoderSpec) -> Autoencoder:
    """The video autoencoder. Weights are torch's defaults; call `initialize`, or take `load_autoencoder`.

    Without a scaling factor latents are not scaled, which is right where only pixels count or the scale is measured.

    Raises:
        ConfigError: a field is unset or the sizes do not fit together.
    """
    config = autoencoder_config(spec)
    try:
        return DCAE(config) if isinstance(config, DCAEConfig) else HunyuanVAE(config)
    except ValueError as error:
        raise ConfigError(f"spec.autoencoder.{error}") from error


def autoencoder_config(spec: AutoencoderSpec) -> DCAEConfig | HunyuanVAEConfig:
    """Sizes of the video autoencoder.

    Raises:
        ConfigError: a field is unset or the sizes do not fit together.
    """
    tiles = spec.tiling
    sizes: dict[str, Any] = {
        "latent_channels": _set(spec.latent_channels, "spec.autoencoder.latentChannels"),
        "widths": tuple(_set(spec.widths, "spec.autoencoder.widths")),
        "depths": tuple(_set(spec.depths, "spec.autoencoder.depths")),
        "decoder_depths": tuple(_set(spec.decoder_depths, "spec.autoencoder.decoderDepths")),
        "scaling_factor": 1.0 if spec.scaling_factor is None else spec.scaling_factor,
        "tiling": tiles and Tiling(pixels=tiles.pixels, frames=tiles.frames, overlap=tiles.overlap),
    }
    try:
        if _set(spec.kind, "spec.autoencoder.kind") == "dc-ae":
            return DCAEConfig(**sizes)
        return HunyuanVAEConfig(**sizes, norm_groups=_set(spec.norm_groups, "spec.autoencoder.normGroups"))
    except ValueError as error:
        raise ConfigError(f"spec.autoencoder: {error}") from error


def load_autoencoder(spec: AutoencoderSpec, source: Source, what: str | None = None) -> Autoencoder:
    """The video autoencoder with its weights and the scale of its latents: the specification's, else the file's.

    Args:
        spec: resolved.
        source: weights in any published layout: content, path or URI (see `weights.open_weights`), or open ones.
        what: where it came from, for messages.

    Raises:
        ConfigError: the weights do not fit, or neither names the scale.
    """
    weights = source if isinstance(source, Weights) else open_weights(source, what)
    factor = scaling_factor(spec, weights.metadata, weights.what)
    module = build_autoencoder(spec.model_copy(update={"scaling_factor": factor}))
    load_weights(module, weights)
    return module


def scaling_factor(spec: AutoencoderSpec, metadata: Mapping[str, str], what: str) -> float:
    """The scale of an autoencoder's latents: the specification's, else the one stored with the weights.

    Raises:
        ConfigError: neither names one, or the stored one is no positive number.
    """
    if spec.scaling_factor is not None:
        return spec.scaling_factor
    stored = metadata.get(SCALING_FACTOR)
    try:
        factor = float(stored) if stored is not None else 0.0
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(
            f"spec.autoencoder.scalingFactor: not set, and {what} has {SCALING_FACTOR} {stored!r} in its metadata; set "
            "it to the root mean square of the autoencoder's latents, or train the autoencoder in this run"
        )
    return factor


def _set(value: Value | None, field: str) -> Value:
    if value is None:
        raise ConfigError(f"{field}: not set in the stage configuration; it must be resolved before training")
    return value
