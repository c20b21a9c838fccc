"""`build` and `load`: models by name, with random or published weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import overload

import torch

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS, complete_autoencoder
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.presets import PRESETS, Described, config_of
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig
from videotrain_trainer.networks.build import SCALING_FACTOR, autoencoder_config, load_autoencoder, scale_of
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.lora.files import load_adapter
from videotrain_trainer.networks.lora.layers import merge
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import row_of, row_of_class, row_of_kind
from videotrain_trainer.networks.weights import (
    Destination,
    ModelConfig,
    Planned,
    Weights,
    load_weights,
    open_weights,
    write_weights,
)
from videotrain_trainer.networks.weights.configuration import metadata_of, stored_configuration
from videotrain_trainer.networks.weights.layouts import recognise, scheme, sizes
from videotrain_trainer.networks.weights.strict import check_fit
from videotrain_trainer.storage import ObjectStore

LOG = logging.getLogger(__name__)
Model = MMDiT | Autoencoder


@overload
def build(
    model: MMDiTConfig,
    *,
    device: str | torch.device = ...,
    dtype: torch.dtype = ...,
    seed: int = ...,
) -> MMDiT: ...
@overload
def build(
    model: Described,
    *,
    autoencoder: str | AutoencoderSpec | None = ...,
    text_encoder: TextEncoderSpec | None = ...,
    device: str | torch.device = ...,
    dtype: torch.dtype = ...,
    seed: int = ...,
) -> Model: ...
def build(
    model: Described,
    *,
    autoencoder: str | AutoencoderSpec | None = None,
    text_encoder: TextEncoderSpec | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Model:
    """A model with random weights that depend on the seed alone.

    Weights are made one parameter at a time in the data type that was asked for, so the peak is the model itself; with
    device `meta` there are none, and 11 B parameters need no memory.

    Args:
        model: a preset (`videotrain_trainer.models.PRESETS`), a specification, a published configuration of Open-Sora,
            FLUX or diffusers as it is, or sizes.
        autoencoder: for a transformer: whose latents it works on; by default that of its preset.
        text_encoder: for a transformer: whose features it is given; by default that of its preset.
        device: where the weights are made.
        dtype: of the weights.
        seed: of the weights.

    Returns:
        The model in evaluation mode.

    Raises:
        ConfigError: the preset is unknown, or sizes do not fit together.
        ManifestError: a specification names an unknown preset or leaves sizes unset.
    """
    module = _empty(config_of(model, autoencoder, text_encoder), dtype)
    if torch.device(device).type == "meta":
        return module
    initialize(module, seed)
    return module.to(device)


def load(
    path: str | Path,
    layout: str | None = None,
    *,
    model: Described | None = None,
    adapter: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    store: ObjectStore | None = None,
) -> Model:
    """A model with the weights of a file, strictly: every tensor that does not fit is listed, and nothing is loaded.

    Args:
        path: a safetensors file, an index, or a folder with either (a stage's result, a component of a diffusers
            folder); a path or URI.
        layout: of the file, such as `open-sora-v2`, `flux-dev`, `hunyuan-vae`, `open-sora-dc-ae`, `diffusers`;
            recognised by its tensor names if unset.
        model: which model it must be, as for `build`; by default the one that its tensors describe. Shapes do not tell
            rotary axes that are not in the published proportion, nor the patch size of a model without condition.
        adapter: a LoRA adapter to merge in, as for `load_adapter`.
        device: where the model goes.
        dtype: of the weights; as stored if unset.
        store: serves s3://; by default one with the credentials of the environment.

    Returns:
        The model in evaluation mode.

    Raises:
        ConfigError: there is no such file, it is damaged, or it does not fit.
    """
    weights = open_weights(path, store=store)
    module = _from_folder(model, weights)
    if module is not None:
        return module.to(device, dtype or stored_dtype(weights)).eval()
    found = recognise(weights.shapes, weights.what, layout)
    module = _empty(config_for(weights, found, model), dtype or computable(stored_dtype(weights), weights.what))
    load_weights(module, weights, layout=found)
    if adapter is not None:
        load_adapter(module, adapter, store)
        merge(module)
    return module.to(device)


def save(module: Model, path: str | Path, *, store: ObjectStore | None = None) -> None:
    """Write a model as one safetensors file under its own names, with the configuration that `load` reads.

    Args:
        module: on any device.
        path: ends in `.safetensors`; a path or URI.
        store: serves s3://; by default one with the credentials of the environment.

    Raises:
        DiskFull: no space left.
    """
    state = module.state_dict()
    plan = [Planned(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
    destination = Destination(target=path, store=store, sealed=True)
    write_weights(destination, plan, lambda name: state[name], metadata_of(module))


def _from_folder(model: Described | None, weights: Weights) -> Model | None:
    """An autoencoder whose sizes only its folder tells; None for another model."""
    spec = AUTOENCODERS.get(model) if isinstance(model, str) else model
    if isinstance(spec, AutoencoderSpec):
        spec = complete_autoencoder(spec)
        return load_autoencoder(spec, weights) if row_of_kind(spec.kind).of_folder is not None else None
    name = str((weights.config or {}).get("_class_name"))
    if model is None and name.startswith("Autoencoder") and row_of_class(name) is None:
        folders = [preset for preset, found in AUTOENCODERS.items() if row_of_kind(found.kind).of_folder is not None]
        raise ConfigError(
            f"{weights.what}: an {name} of diffusers, whose folder does not always tell its compression; name the "
            f"model: one of the presets {', '.join(folders)}, or a specification of kind diffusers"
        )
    return None


def _empty(config: ModelConfig, dtype: torch.dtype) -> Model:
    with torch.device("meta"):
        module = MMDiT(config) if isinstance(config, MMDiTConfig) else row_of(config).build(config)
        return module.to(dtype).eval()


def config_for(weights: Weights, layout: str, model: Described | None) -> ModelConfig:
    """Sizes of the model in a file: the one that is named, else the one that the file's configuration describes, else
    the one that its tensors do.

    Raises:
        ConfigError: nothing tells them, configuration and tensors do not fit, or an autoencoder's scale is not known.
    """
    if model is not None:
        return _named(model, weights)
    stored = stored_configuration(weights)
    if stored is None:
        return _described(weights)
    check_fit(scheme(layout, stored.config).theirs, weights.shapes, weights.what, f"the model of {stored.what}")
    if isinstance(stored.config, MMDiTConfig):
        return stored.config
    return replace(stored.config, scaling_factor=scale_of(AutoencoderSpec(), weights))


def _named(model: Described, weights: Weights) -> ModelConfig:
    """The model that was asked for; an autoencoder without a scale takes the one of its file."""
    config = config_of(model)
    spec = AUTOENCODERS.get(model) if isinstance(model, str) else model
    if isinstance(config, MMDiTConfig) or not isinstance(spec, AutoencoderSpec) or config.scaling_factor != 1.0:
        return config
    return replace(config, scaling_factor=scale_of(spec, weights))


def _described(weights: Weights) -> ModelConfig:
    """The model that a file's tensors describe, with a preset's own settings where it has its sizes."""
    config = sizes(weights.shapes, weights.what)
    if isinstance(config, MMDiTConfig):
        _tell_assumed(config, weights)
        return config
    if config.scaling_factor != 1.0:
        return config  # of a kind whose one scale is known
    own = [name for name in PRESETS if name in AUTOENCODERS]
    alike = [name for name in own if _alike(autoencoder_config(AUTOENCODERS[name]), config)]
    if not alike:
        LOG.warning(
            "%s carries no configuration, and its sizes are those of no preset: %s are taken to be as published, and "
            "clips are coded whole. Name the model to be sure",
            weights.what,
            ", ".join(f"{name} {getattr(config, name)}" for name in row_of(config).untold) or "no other settings",
        )
        return replace(config, scaling_factor=scale_of(AutoencoderSpec(), weights))
    LOG.info("%s has the sizes of preset %s", weights.what, alike[0])
    spec = AUTOENCODERS[alike[0]]
    factor = scale_of(AutoencoderSpec() if SCALING_FACTOR in weights.metadata else spec, weights)
    return replace(autoencoder_config(spec), scaling_factor=factor)


def _tell_assumed(config: MMDiTConfig, weights: Weights) -> None:
    """Warn of a transformer that is in no preset: its tensors do not tell everything that it computes with."""
    known = [preset for name in TRANSFORMERS if isinstance(preset := config_of(name), MMDiTConfig)]
    if replace(config, patch_size=1) in (replace(preset, patch_size=1) for preset in known):
        return
    LOG.warning(
        "%s carries no configuration, and its sizes are those of no preset: rope_axes %s%s are taken to be as "
        "published. Name the model to be sure",
        weights.what,
        config.rope_axes,
        "" if config.cond_embed else f" and patch_size {config.patch_size}",
    )


def _alike(published: AutoencoderConfig, config: AutoencoderConfig) -> bool:
    """Whether shapes cannot tell two autoencoders apart."""
    if type(published) is not type(config):
        return False
    untold = ("scaling_factor", "tiling", *row_of(config).untold)
    return replace(published, **{name: getattr(config, name) for name in untold}) == config


def stored_dtype(weights: Weights) -> torch.dtype:
    """Data type of the first floating-point tensor."""
    return next((dtype for dtype in map(weights.dtype, weights.files) if dtype.is_floating_point), torch.float32)


def computable(dtype: torch.dtype, what: str) -> torch.dtype:
    """The data type, if models can compute in it.

    Raises:
        ConfigError: they cannot.
    """
    if dtype.itemsize < 2:
        raise ConfigError(
            f"{what}: stored as {dtype}, in which torch computes no layer; give dtype=torch.bfloat16 to have it cast"
        )
    return dtype
