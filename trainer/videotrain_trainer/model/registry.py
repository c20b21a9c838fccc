"""From resolved specifications to models, and their initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from videotrain_api.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.model.common import seeded_generator
from videotrain_trainer.model.dc_ae import DCAE, Conv, DCAEConfig
from videotrain_trainer.model.mmdit import MMDiT, MMDiTConfig
from videotrain_trainer.model.text import ByteTextEncoder
from videotrain_trainer.model.weights import load_weights, read_metadata

Value = TypeVar("Value")

BRANCH_NORM = 0.02
"""First weight of the norms that end a residual branch of a DC-AE."""
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


def build_autoencoder(spec: AutoencoderSpec) -> DCAE:
    """The video autoencoder. Weights are torch's defaults; call `initialize`, or take `load_autoencoder`.

    Without a scaling factor latents are not scaled, which is right where only pixels count or the scale is measured.

    Raises:
        ConfigError: a field is unset, the sizes do not fit together, or the kind is not available.
    """
    if spec.kind != "dc-ae":
        raise ConfigError(
            f"spec.autoencoder.kind: {spec.kind!r} is not available in this version of the trainer; use 'dc-ae'"
        )
    try:
        return DCAE(
            DCAEConfig(
                latent_channels=_set(spec.latent_channels, "spec.autoencoder.latentChannels"),
                widths=tuple(_set(spec.widths, "spec.autoencoder.widths")),
                depths=tuple(_set(spec.depths, "spec.autoencoder.depths")),
                decoder_depths=tuple(_set(spec.decoder_depths, "spec.autoencoder.decoderDepths")),
                scaling_factor=1.0 if spec.scaling_factor is None else spec.scaling_factor,
            )
        )
    except ValueError as error:
        raise ConfigError(f"spec.autoencoder: {error}") from error


def load_autoencoder(spec: AutoencoderSpec, source: bytes, what: str) -> DCAE:
    """The video autoencoder with its weights and the scale of its latents: the specification's, else the file's.

    Args:
        spec: resolved.
        source: content of a safetensors file.
        what: where it came from, for messages.

    Raises:
        ConfigError: the weights do not fit, or neither names the scale.
    """
    factor = scaling_factor(spec, read_metadata(source, what), what)
    module = build_autoencoder(spec.model_copy(update={"scaling_factor": factor}))
    load_weights(module, source, what)
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


def build_text_encoder(spec: TextEncoderSpec) -> ByteTextEncoder:
    """The text encoder, on the CPU.

    Raises:
        ConfigError: the kind is not available.
    """
    if spec.kind != "bytes":
        raise ConfigError(
            f"spec.textEncoder.kind: {spec.kind!r} is not available in this version of the trainer; use 'bytes'"
        )
    return ByteTextEncoder(spec.context_dim, spec.pooled_dim, spec.max_tokens)


def initialize(module: nn.Module, seed: int) -> None:
    """Random weights that depend on the seed and each parameter's name alone, whatever the world or the order.

    Linear layers start as torch does (uniform, 1/sqrt(fan-in)). Convolutions start from a normal of the same scale,
    which at published widths is the 0.02 of the DC-AE recipe. Norms start at one, but those that end a branch of a
    DC-AE start near zero (0.02, the scale of the recipe), so that at first its shortcuts carry the picture. The
    condition input of an MMDiT starts at zero.
    """
    for name, parameter in module.named_parameters():
        owner, _, kind = name.rpartition(".")
        _fill(parameter, module.get_submodule(owner), kind, seeded_generator(seed, name))
    if isinstance(module, MMDiT) and module.cond_in is not None:
        nn.init.zeros_(module.cond_in.weight)
        nn.init.zeros_(module.cond_in.bias)
    for part in module.modules():
        if isinstance(part, Conv) and part.norm is not None:
            nn.init.constant_(part.norm.weight, BRANCH_NORM)


@torch.no_grad()
def _fill(parameter: nn.Parameter, owner: nn.Module, kind: str, generator: torch.Generator) -> None:
    values = torch.empty(parameter.shape, dtype=torch.float32)
    if isinstance(owner, nn.Linear):
        bound = 1.0 / math.sqrt(owner.in_features)
        values.uniform_(-bound, bound, generator=generator)
    elif isinstance(owner, nn.Conv3d) and kind == "weight":
        std = 1.0 / math.sqrt(parameter[0].numel())
        nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=generator)
    else:
        values.fill_(0.0 if kind == "bias" else 1.0)
    parameter.copy_(values)


def _set(value: Value | None, field: str) -> Value:
    if value is None:
        raise ConfigError(f"{field}: not set in the stage configuration; it must be resolved before training")
    return value
