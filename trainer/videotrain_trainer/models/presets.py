"""From a preset's name, a specification or a published configuration to the sizes of a model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from videotrain_api.config.presets import (
    AUTOENCODERS,
    COMPANIONS,
    TRANSFORMERS,
    complete_autoencoder,
    complete_transformer,
)
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.schema import ManifestError
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.published import described
from videotrain_trainer.networks.build import autoencoder_config, mmdit_config
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.weights import ModelConfig

PRESETS = (*TRANSFORMERS, *(name for name, spec in AUTOENCODERS.items() if spec.widths))
"""Every name that `build` takes; an autoencoder of diffusers is loaded from its folder."""
Described = str | TransformerSpec | AutoencoderSpec | ModelConfig | Mapping[str, Any]
"""What says which model is meant."""


def config_of(
    model: Described,
    autoencoder: str | AutoencoderSpec | None = None,
    text_encoder: TextEncoderSpec | None = None,
) -> ModelConfig:
    """Sizes of the model that is meant.

    Args:
        model: a preset's name, a specification, a published configuration (see `published.described`), or sizes.
        autoencoder: for a transformer: whose latents it works on; by default that of its preset.
        text_encoder: for a transformer: whose features it is given; by default that of its preset.

    Raises:
        ConfigError: the preset is unknown, or sizes are missing or do not fit together.
        ManifestError: a specification names an unknown preset or leaves sizes unset.
    """
    if isinstance(model, ModelConfig):
        return model
    if isinstance(model, str):
        model = _preset(model)
    if isinstance(model, AutoencoderSpec):
        return autoencoder_config(complete_autoencoder(model))
    try:
        if isinstance(model, TransformerSpec):
            return _transformer(model, autoencoder, text_encoder)
        spec = AutoencoderSpec(preset=autoencoder) if isinstance(autoencoder, str) else autoencoder
        return described(model, None if spec is None else complete_autoencoder(spec).latent_channels)
    except ManifestError:
        raise  # names its fields itself
    except ValueError as error:
        raise ConfigError(f"the transformer's sizes do not fit: {error}") from error


def _preset(name: str) -> TransformerSpec | AutoencoderSpec:
    if name in TRANSFORMERS:
        return TransformerSpec(preset=name)
    if name in PRESETS:
        return AutoencoderSpec(preset=name)
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"preset {name!r} is unknown; {hint}allowed: {', '.join(PRESETS)}")


def _transformer(
    model: TransformerSpec, autoencoder: str | AutoencoderSpec | None, text_encoder: TextEncoderSpec | None
) -> MMDiTConfig:
    companion = COMPANIONS.get(model.preset or "")
    latents = autoencoder or (companion and companion[0])
    text = text_encoder or (companion and companion[1])
    if latents is None or text is None:
        raise ConfigError(
            "a transformer without a preset needs to know its latents and its text features: give autoencoder and "
            f"text_encoder, or one of the presets {', '.join(COMPANIONS)}"
        )
    spec = AutoencoderSpec(preset=latents) if isinstance(latents, str) else latents
    return mmdit_config(complete_transformer(model), complete_autoencoder(spec), text)
