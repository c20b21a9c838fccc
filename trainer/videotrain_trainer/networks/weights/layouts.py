"""The published layouts by name, and which model each can hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.interface import AutoencoderConfig
from videotrain_trainer.networks.layout_rules import Rule, Shapes, their_shapes
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.layouts import diffusers_rules, flux_rules, same_rules
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.registry import AUTOENCODERS, MakeRules, row_of
from videotrain_trainer.networks.weights.sizes import layout_of, mmdit_sizes

ModelConfig = MMDiTConfig | AutoencoderConfig


@dataclass(frozen=True)
class Scheme:
    """How a model of known sizes is stored in a layout."""

    layout: str
    config: ModelConfig
    rules: list[Rule]
    ours: Shapes
    """Names and shapes of our tensors."""
    theirs: Shapes
    """Names and shapes of the layout's."""


_TRANSFORMER_RULES: Mapping[str, MakeRules] = {
    "open-sora-v2": lambda config, _: same_rules(config),
    "flux-dev": lambda config, _: flux_rules(config),
    "diffusers": lambda config, _: diffusers_rules(config),
}
LAYOUTS = tuple(dict.fromkeys([*_TRANSFORMER_RULES, *(name for row in AUTOENCODERS.values() for name in row.layouts)]))
"""Every layout that can be read and written."""
PICTURE_LAYOUTS = ("image-dc-ae", "diffusers-image-dc-ae")
"""Autoencoders of pictures: kernels without a time axis. They start the training of a video autoencoder."""


def _build(config: ModelConfig) -> nn.Module:
    if isinstance(config, MMDiTConfig):
        return MMDiT(replace(config, fused_qkv=False, rope_layout="half-split"))
    return row_of(config).build(config)


def has_layouts(config: ModelConfig) -> bool:
    """Whether weights of such a model have published layouts; else they have the model's own names."""
    return isinstance(config, MMDiTConfig) or bool(row_of(config).layouts)


def scheme(layout: str, config: ModelConfig) -> Scheme:
    """How a model of those sizes is stored in a layout.

    Raises:
        ConfigError: the layout is unknown or cannot hold the model.
    """
    maker = _makers(layout).get(type(config))
    if maker is None:
        fitting = [name for name in LAYOUTS if type(config) in _makers(name)]
        title = "an MMDiT" if isinstance(config, MMDiTConfig) else row_of(config).title
        raise ConfigError(f"layout {layout!r} cannot hold {title}; those that can: {', '.join(fitting)}")
    ours = our_shapes(config, layout)
    rules = maker(config, ours)
    return Scheme(layout, config, rules, ours, their_shapes(rules, ours))


def our_shapes(config: ModelConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our tensors; kernels without time for a layout of pictures."""
    with torch.device("meta"):
        state = _build(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if layout in PICTURE_LAYOUTS:
        return {name: (*shape[:2], *shape[3:]) if len(shape) == 5 else shape for name, shape in shapes.items()}
    return shapes


def recognise(shapes: Shapes, what: str, named: str | None = None) -> str:
    """The layout of a file.

    Args:
        shapes: of its tensors.
        what: where it came from.
        named: the layout that somebody said it has.

    Raises:
        ConfigError: it has no known layout, or plainly another one.
    """
    if named is not None:
        _makers(named)
    found = layout_of(shapes, what)
    if named in (None, found) or (named, found) in _SAME_NAMES:
        return named or found
    raise ConfigError(f"{what}: it was said to have layout {named!r}, but its tensor names are those of {found!r}")


_SAME_NAMES = (("diffusers", "hunyuan-vae"),)
"""(said, found) pairs whose names do not differ."""


def sizes(shapes: Shapes, what: str) -> ModelConfig:
    """Sizes of the model in a file, by its tensors alone.

    Raises:
        ConfigError: tensors that tell them are missing.
    """
    found = layout_of(shapes, what)
    for row in AUTOENCODERS.values():
        shared = found in _TRANSFORMER_RULES and row.sign not in shapes
        if row.sizes is not None and found in row.layouts and not shared:
            return row.sizes(found, shapes, what)
    if found in _TRANSFORMER_RULES:
        return mmdit_sizes(shapes, what)
    raise ConfigError(f"{what}: no kind of autoencoder tells its sizes from a file of layout {found!r}; name the model")


def _makers(layout: str) -> dict[type, MakeRules]:
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"layout {layout!r} is unknown; {hint}allowed: {', '.join(LAYOUTS)}")
    found: dict[type, MakeRules] = {
        row.config: row.layouts[layout] for row in AUTOENCODERS.values() if layout in row.layouts
    }
    return found | ({MMDiTConfig: _TRANSFORMER_RULES[layout]} if layout in _TRANSFORMER_RULES else {})
