"""From resolved specifications to models, and their initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig
from videotrain_trainer.networks.autoencoders.tiling import Tiling
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import AutoencoderRow, needed, row_of_kind
from videotrain_trainer.networks.weights import Source, Weights, load_weights, open_weights
from videotrain_trainer.networks.weights.configuration import stored_configuration

__all__ = [
    "SCALING_FACTOR",
    "autoencoder_config",
    "build_autoencoder",
    "build_transformer",
    "initialize",
    "load_autoencoder",
    "mmdit_config",
    "scale_of",
    "scaling_factor",
]

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
    patch = needed(spec.patch_size, "spec.model.patchSize")
    time, rows, columns = needed(spec.rope_axes, "spec.model.ropeAxes")
    return MMDiTConfig(
        in_channels=needed(autoencoder.latent_channels, "spec.autoencoder.latentChannels") * patch * patch,
        context_dim=text.context_dim,
        pooled_dim=text.pooled_dim,
        hidden_size=needed(spec.hidden_size, "spec.model.hiddenSize"),
        num_heads=needed(spec.num_heads, "spec.model.numHeads"),
        double_blocks=needed(spec.double_blocks, "spec.model.doubleBlocks"),
        single_blocks=needed(spec.single_blocks, "spec.model.singleBlocks"),
        mlp_ratio=needed(spec.mlp_ratio, "spec.model.mlpRatio"),
        rope_axes=(time, rows, columns),
        patch_size=patch,
        cond_embed=needed(spec.cond_embed, "spec.model.condEmbed"),
        guidance_embed=needed(spec.guidance_embed, "spec.model.guidanceEmbed"),
    )


def build_autoencoder(spec: AutoencoderSpec) -> Autoencoder:
    """The video autoencoder. Weights are torch's defaults; call `initialize`, or take `load_autoencoder`.

    Without a scaling factor latents are not scaled, which is right where only pixels count or the scale is measured.

    Raises:
        ConfigError: a field is unset, the sizes do not fit together, or only a folder tells them.
    """
    return _built(row_of_kind(spec.kind), autoencoder_config(spec))


def _built(row: AutoencoderRow, config: AutoencoderConfig) -> Autoencoder:
    try:
        return row.build(config)
    except ValueError as error:
        raise ConfigError(f"spec.autoencoder.{error}") from error


def autoencoder_config(spec: AutoencoderSpec) -> AutoencoderConfig:
    """Sizes of the video autoencoder.

    Raises:
        ConfigError: a field is unset, the sizes do not fit together, or only a folder tells them.
    """
    row = row_of_kind(needed(spec.kind, "spec.autoencoder.kind"))
    if row.of_folder is not None:
        raise ConfigError(f"spec.autoencoder.kind: {spec.kind}: only the folder of its weights tells its sizes")
    try:
        return row.config(
            latent_channels=needed(spec.latent_channels, "spec.autoencoder.latentChannels"),
            scaling_factor=1.0 if spec.scaling_factor is None else spec.scaling_factor,
            tiling=_tiling(spec),
            **row.of_spec(spec),
        )
    except ValueError as error:
        raise ConfigError(f"spec.autoencoder: {error}") from error


def _tiling(spec: AutoencoderSpec) -> Tiling | None:
    tiles = spec.tiling
    return None if tiles is None else Tiling(pixels=tiles.pixels, frames=tiles.frames, overlap=tiles.overlap)


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
    row = row_of_kind(spec.kind)
    if row.of_folder is not None:
        config = row.of_folder(spec, weights.config, _tiling(spec), weights.what)
    else:
        config = autoencoder_config(spec.model_copy(update={"scaling_factor": scale_of(spec, weights)}))
    module = _built(row, config)
    load_weights(module.weights_owner(), weights)
    return module


def scale_of(spec: AutoencoderSpec, weights: Weights) -> float:
    """The scale of an autoencoder's latents: the specification's, else that of its file.

    Raises:
        ConfigError: neither names one, or the stored one is no positive number.
    """
    if spec.scaling_factor is None and SCALING_FACTOR not in weights.metadata:
        stored = stored_configuration(weights)
        if stored is not None and isinstance(stored.config, AutoencoderConfig):
            return stored.config.scaling_factor
    return scaling_factor(spec, weights.metadata, weights.what)


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
