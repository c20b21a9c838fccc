"""An adapter of diffusers' FluxTransformer2DModel as one of ours.

A layer of ours may be two of theirs (values and feed-forward input of a one-stream block), and rows of queries and keys
are in another order. Both touch rows alone, so a layout's rules can be run on the B matrices: what belongs to different
layers of theirs stands in different columns, beside A matrices one below the other.

Shape letters: F features of a layer's input, O of its output, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.layout_rules import Rule, Shapes
from videotrain_trainer.networks.lora.layers import LoraConfig
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.weights.files import Weights, listed
from videotrain_trainer.networks.weights.layouts import scheme

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
"""Before every name in diffusers' files; text encoders have other ones."""
SETTINGS = "lora_adapter_metadata"
"""Metadata field with the settings of the adapter, in newer files."""
_A, _B, _ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
_REFUSED = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias", "modules_to_save")
"""Settings that would have to be read for the file to mean something else than plain additions."""


@dataclass(frozen=True)
class _Addition:
    """What is added to one of their weights: b_OR a_RF."""

    a_RF: Tensor
    b_OR: Tensor
    """Multiplied by alpha / rank already."""


def is_from_diffusers(weights: Weights) -> bool:
    """Whether a file has tensors under diffusers' names of an adapter."""
    return any(name.startswith(PREFIX) and name.endswith(_A) for name in weights.files)


def from_diffusers(config: MMDiTConfig, weights: Weights) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter in our names, for a model that holds its tensors as we do by default.

    Args:
        config: of the model.
        weights: of the adapter; a layer's alpha is in the file, in its metadata, or equal to the rank.

    Returns:
        Its configuration, and float32 tensors `*.lora_A.weight` and `*.lora_B.weight` of the layers that the file has.

    Raises:
        ConfigError: it adapts what an MMDiT does not have, or a kind of adapter that is not understood.
    """
    if config.fused_qkv or config.rope_layout != "half-split":
        raise ConfigError(
            f"{weights.what}: for an adapter under diffusers' names load the model with `load`; this one holds FLUX's "
            "own fused or interleaved weights"
        )
    stored, additions = scheme("diffusers", config), _additions(weights)
    rules = {name.removesuffix(".weight"): rule for rule in stored.rules for name in rule.theirs}
    # The one rule that splits a weight of theirs splits columns, which B does not have.
    odd = [name for name in additions if name not in rules or len(rules[name].ours) > 1]
    if odd:
        raise ConfigError(f"{weights.what}: layers of which this model has no counterpart:{listed(odd)}")
    used = {rules[name].ours[0]: rules[name] for name in additions}
    ours = {name.removesuffix(".weight"): _ours(rule, additions, stored.theirs) for name, rule in used.items()}
    rank = max(len(addition.a_RF) for addition in ours.values())
    tensors = {}
    for name, addition in ours.items():
        missing = rank - len(addition.a_RF)
        tensors[f"{name}{_A}"] = F.pad(addition.a_RF, (0, 0, 0, missing))
        tensors[f"{name}{_B}"] = F.pad(addition.b_OR, (0, missing))
    return LoraConfig(rank, float(rank), tuple(sorted({_end(name) for name in ours}))), tensors


def _ours(rule: Rule, additions: Mapping[str, _Addition], shapes: Shapes) -> _Addition:
    """The addition to one of our weights, of which some parts may be adapted and others not."""
    found = [additions.get(name.removesuffix(".weight")) for name in rule.theirs]
    rank, start, columns = sum(len(part.a_RF) for part in found if part), 0, []
    for name, part in zip(rule.theirs, found, strict=True):
        beside = torch.zeros(shapes[name][0], rank)
        if part is not None:
            if part.b_OR.shape[0] != shapes[name][0]:
                rows = f"{part.b_OR.shape[0]} rows, {shapes[name][0]} in the model"
                raise ConfigError(f"{name.removesuffix('.weight')}{_B}: {rows}; it was made for another model")
            beside[:, start : start + len(part.a_RF)] = part.b_OR
            start += len(part.a_RF)
        columns.append(beside)
    (b_OR,) = rule.to_ours(columns)
    return _Addition(torch.cat([part.a_RF for part in found if part is not None]), b_OR.contiguous())


def _end(name: str) -> str:
    """What names a kind of layer: its last part, or the last two where the last one is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _additions(weights: Weights) -> dict[str, _Addition]:
    """Every adapted layer of a file by its name, with A, B and what is known of alpha."""
    names = [name for name in weights.files if name.startswith(PREFIX)]
    layers = [name.removesuffix(_A).removeprefix(PREFIX) for name in names if name.endswith(_A)]
    known = {f"{PREFIX}{layer}{part}" for layer in layers for part in (_A, _B, _ALPHA)}
    odd = [name for name in weights.files if name not in known]
    odd += [f"{PREFIX}{layer}{_B} is missing" for layer in layers if f"{PREFIX}{layer}{_B}" not in weights.files]
    if odd:
        raise ConfigError(f"{weights.what}: only pairs {PREFIX}NAME{_A}, {PREFIX}NAME{_B} can be loaded:{listed(odd)}")
    scale = _scale(weights)
    return {layer: _addition(weights, f"{PREFIX}{layer}", scale) for layer in layers}


def _addition(weights: Weights, name: str, scale: float) -> _Addition:
    a_RF, b_OR = weights.read(name + _A).float(), weights.read(name + _B).float()
    if a_RF.ndim != 2 or b_OR.ndim != 2 or a_RF.shape[0] != b_OR.shape[1]:
        raise ConfigError(f"{weights.what}: {name}: A {list(a_RF.shape)} and B {list(b_OR.shape)} do not fit together")
    if name + _ALPHA in weights.files:
        scale = float(weights.read(name + _ALPHA)) / len(a_RF)
    return _Addition(a_RF, scale * b_OR)


def _scale(weights: Weights) -> float:
    """Factor of all additions by the metadata; 1 without them, which is diffusers' convention."""
    if SETTINGS not in weights.metadata:
        return 1.0
    try:
        stored = json.loads(weights.metadata[SETTINGS])
        fields = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
        scale = float(fields["lora_alpha"]) / float(fields["r"]) if "lora_alpha" in fields else 1.0
    except (ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{weights.what}: its metadata field {SETTINGS} cannot be read: {error!r}") from error
    odd = [name for name in _REFUSED if fields.get(name)]
    if odd:
        raise ConfigError(f"{weights.what}: only plain LoRA can be loaded, but these are set: {', '.join(odd)}")
    return scale
