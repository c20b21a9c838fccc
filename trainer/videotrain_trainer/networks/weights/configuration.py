"""The configuration of the model in a weight file: written into its metadata, and read before anything is guessed.

Shapes do not tell everything that a model computes with (groups of norms, rotary axes, patch, tiles). So files of this
package carry all fields as JSON under `videotrain_config`. A file of others is described by the `config.json` beside it
where there is one; only then by its shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.folders import sizes_of
from videotrain_trainer.networks.autoencoders.interface import AutoencoderConfig
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.registry import AUTOENCODERS, kind_of, row_of_class
from videotrain_trainer.networks.weights.files import Weights
from videotrain_trainer.networks.weights.layouts import ModelConfig

CONFIGURATION = "videotrain_config"
"""Metadata field."""
TRANSFORMER_CLASS = "FluxTransformer2DModel"
_MMDIT = "mmdit"
_CHOSEN = frozenset({"scaling_factor", "shift_factor", "tiling", "fused_qkv", "rope_layout"})
"""Fields in which a model may differ from the one that its weights were written for: they are a choice of the run, or
how a layout stores the same numbers."""


@dataclass(frozen=True)
class StoredConfiguration:
    """What a file says of its model."""

    config: ModelConfig
    what: str
    """Where it says so."""
    exact: bool
    """It has every field; `config.json` of a transformer lacks the patch where there is no condition input."""


def configuration_metadata(config: ModelConfig) -> dict[str, str]:
    """The metadata of a file with a model of that configuration, whatever the layout."""
    if isinstance(config, MMDiTConfig):
        # Layouts store separate q/k/v and half-split positions, or say by their names that they do not.
        described = {"model": _MMDIT, **asdict(replace(config, fused_qkv=False, rope_layout="half-split"))}
    else:
        described = {"model": kind_of(config), **asdict(config)}
    return {CONFIGURATION: json.dumps(described)}


def metadata_of(module: nn.Module) -> dict[str, str]:
    """The metadata of a file with the weights of a model; none for a model without a configuration of ours."""
    config = getattr(module, "config", None)
    return configuration_metadata(config) if isinstance(config, MMDiTConfig | AutoencoderConfig) else {}


def stored_configuration(weights: Weights) -> StoredConfiguration | None:
    """What a file says of its model: in its metadata, else in the `config.json` beside it. None if neither does.

    Raises:
        ConfigError: the configuration is damaged or of a model that is not known.
    """
    if CONFIGURATION in weights.metadata:
        what = f"{weights.what}: {CONFIGURATION} in its metadata"
        return StoredConfiguration(_of_metadata(weights.metadata[CONFIGURATION], what), what, exact=True)
    if weights.config is None:
        return None
    name = str(weights.config.get("_class_name"))
    if name != TRANSFORMER_CLASS and row_of_class(name) is None:
        return None
    return described_by_class(weights.config, f"{weights.what}: config.json beside it")


def described_by_class(fields: Mapping[str, Any], what: str, latent_channels: int | None = None) -> StoredConfiguration:
    """What the fields of a class of diffusers, or of ours where it has none, say of a model.

    Args:
        fields: with `_class_name`.
        what: where they stand, for messages.
        latent_channels: see `transformer_of_fields`.

    Raises:
        ConfigError: the class is not known, or a field is missing.
    """
    name = fields.get("_class_name")
    row = row_of_class(str(name))
    try:
        if name == TRANSFORMER_CLASS:
            return StoredConfiguration(transformer_of_fields(fields, latent_channels), what, exact=False)
        if row is not None and row.folder is not None:
            return StoredConfiguration(row.folder.of_fields(fields), what, exact=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}: not the configuration of a {name}: {error!r}") from error
    known = [TRANSFORMER_CLASS, *(row.folder.class_name for row in AUTOENCODERS.values() if row.folder)]
    raise ConfigError(f"{what}: _class_name is {name!r}; only {', '.join(known)} can be read")


def _of_metadata(text: str, what: str) -> ModelConfig:
    try:
        described = dict(json.loads(text))
        model = described.pop("model")
        config_class = MMDiTConfig if model == _MMDIT else AUTOENCODERS[model].config
        return config_class(**sizes_of(described))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}: not the configuration of a model: {error!r}") from error


def transformer_of_fields(given: Mapping[str, Any], latent_channels: int | None = None) -> MMDiTConfig:
    """Sizes from the fields of diffusers' `FluxTransformer2DModel`.

    Args:
        given: the fields.
        latent_channels: of the autoencoder, which tell the patch of a model without condition input; 2 is taken if
            unset.
    """
    inputs, out = int(given["in_channels"]), int(given.get("out_channels") or given["in_channels"])
    heads = int(given["num_attention_heads"])
    patch = 2
    if latent_channels is not None:
        patch = math.isqrt(out // latent_channels)
    elif inputs > out:
        patch = math.isqrt(inputs - 2 * out)
    return MMDiTConfig(
        in_channels=out,
        context_dim=int(given["joint_attention_dim"]),
        pooled_dim=int(given["pooled_projection_dim"]),
        hidden_size=heads * int(given["attention_head_dim"]),
        num_heads=heads,
        double_blocks=int(given["num_layers"]),
        single_blocks=int(given["num_single_layers"]),
        mlp_ratio=4.0,
        rope_axes=tuple(given.get("axes_dims_rope", (16, 56, 56))),
        patch_size=patch,
        cond_embed=inputs > out,
        guidance_embed=bool(given.get("guidance_embeds", False)),
    )


def check_same_model(config: ModelConfig, weights: Weights) -> None:
    """Compare a model with the configuration that its weights carry.

    Raises:
        ConfigError: they were written for a model that computes something else with the same tensors.
    """
    stored = stored_configuration(weights)
    if stored is None or type(stored.config) is not type(config):
        return
    skipped = _CHOSEN if stored.exact else _CHOSEN | {"patch_size"}
    differing = [
        f"{field.name}: {ours!r} here, {theirs!r} there"
        for field in fields(config)
        if field.name not in skipped
        and (ours := getattr(config, field.name)) != (theirs := getattr(stored.config, field.name))
    ]
    if differing:
        raise ConfigError(
            f"{stored.what} describes another model than the one that is to have these weights: "
            f"{'; '.join(differing)}. Correct spec.model or spec.autoencoder, or take the weights of that model"
        )
