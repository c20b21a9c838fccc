"""`build` and `load`: models by name, with random or published weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast, overload

import torch
from torch import nn

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.presets import PRESETS, Described, config_of
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.initial import initialize
from videotrain_trainer.networks.lora.files import load_adapter
from videotrain_trainer.networks.lora.layers import merge
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import SCALING_FACTOR, autoencoder_config, scaling_factor
from videotrain_trainer.networks.weights import ModelConfig, Weights, load_weights, open_weights
from videotrain_trainer.networks.weights.layouts import recognise, sizes
from videotrain_trainer.storage import ObjectStore

LOG = logging.getLogger(__name__)
Model = MMDiT | DCAE | HunyuanVAE | PictureVAE


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
    found = recognise(weights.shapes, weights.what, layout)
    module = _empty(config_for(weights, found, model), dtype or computable(stored_dtype(weights), weights.what))
    load_weights(module, weights, layout=found)
    if adapter is not None:
        load_adapter(module, adapter, store)
        merge(module)
    return module.to(device)


def _empty(config: ModelConfig, dtype: torch.dtype) -> Model:
    makers: dict[type, Callable[[ModelConfig], nn.Module]] = {
        MMDiTConfig: lambda sizes: MMDiT(cast("MMDiTConfig", sizes)),
        DCAEConfig: lambda sizes: DCAE(cast("DCAEConfig", sizes)),
        HunyuanVAEConfig: lambda sizes: HunyuanVAE(cast("HunyuanVAEConfig", sizes)),
        PictureVAEConfig: lambda sizes: PictureVAE(cast("PictureVAEConfig", sizes)),
    }
    with torch.device("meta"):
        return cast("Model", makers[type(config)](config).to(dtype).eval())


def config_for(weights: Weights, layout: str, model: Described | None) -> ModelConfig:
    """Sizes of the model in a file: the one that is named, else the one that its tensors describe.

    Raises:
        ConfigError: neither tells them, or an autoencoder's scale is not known.
    """
    return _described(layout, weights) if model is None else _named(model, weights)


def _named(model: Described, weights: Weights) -> ModelConfig:
    """The model that was asked for; an autoencoder without a scale takes the one in the metadata of its file."""
    config = config_of(model)
    spec = AUTOENCODERS.get(model) if isinstance(model, str) else model
    if (
        isinstance(config, MMDiTConfig | PictureVAEConfig)
        or not isinstance(spec, AutoencoderSpec)
        or config.scaling_factor != 1.0
    ):
        return config
    return replace(config, scaling_factor=scaling_factor(spec, weights.metadata, weights.what))


def _described(layout: str, weights: Weights) -> ModelConfig:
    """The model that a file's tensors describe, with a published autoencoder's own settings where it has its sizes."""
    config = sizes(layout, weights.shapes, weights.what)
    if isinstance(config, MMDiTConfig | PictureVAEConfig):
        return config
    for name in PRESETS:
        spec = AUTOENCODERS.get(name)
        if spec is None:
            continue
        published = autoencoder_config(spec)
        if spec.scaling_factor and _bare(published) == _bare(config) and SCALING_FACTOR not in weights.metadata:
            LOG.info("%s has the sizes of preset %s", weights.what, name)
            return published
    return replace(config, scaling_factor=scaling_factor(AutoencoderSpec(), weights.metadata, weights.what))


def _bare(config: DCAEConfig | HunyuanVAEConfig) -> ModelConfig:
    return replace(config, scaling_factor=1.0, tiling=None)


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
