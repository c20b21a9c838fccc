"""The published layouts by name, and which model each can hold."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders import layouts as autoencoder_layouts
from videotrain_trainer.networks.autoencoders import picture_layouts
from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAE, PictureVAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.layout_rules import Rule, Shapes, their_shapes
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.layouts import diffusers_rules, flux_rules, same_rules
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights.sizes import dc_ae_sizes, hunyuan_sizes, layout_of, mmdit_sizes

ModelConfig = MMDiTConfig | DCAEConfig | HunyuanVAEConfig | PictureVAEConfig
MakeRules = Callable[[Any, Shapes], list[Rule]]


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


def _autoencoder_rules(layout: str) -> MakeRules:
    found = autoencoder_layouts.LAYOUTS[layout]

    def rules(_config: object, ours: Shapes) -> list[Rule]:
        return [_autoencoder_rule(name, found) for name in ours]

    return rules


def _autoencoder_rule(name: str, layout: autoencoder_layouts.Layout) -> Rule:
    theirs = layout.from_ours(name)
    return Rule(
        ours=(name,),
        theirs=theirs,
        to_theirs=lambda tensors: list(autoencoder_layouts.from_ours({name: tensors[0]}, layout).values()),
        to_ours=lambda tensors: list(
            autoencoder_layouts.to_ours(dict(zip(theirs, tensors, strict=True)), layout).values()
        ),
    )


_RULES: Mapping[str, Mapping[type, MakeRules]] = {
    "open-sora-v2": {MMDiTConfig: lambda config, _: same_rules(config)},
    "flux-dev": {MMDiTConfig: lambda config, _: flux_rules(config)},
    "diffusers": {
        MMDiTConfig: lambda config, _: diffusers_rules(config),
        HunyuanVAEConfig: _autoencoder_rules("diffusers-hunyuan-vae"),
        PictureVAEConfig: picture_layouts.diffusers_rules,
    },
    "flux-vae": {PictureVAEConfig: picture_layouts.same_rules},
    "hunyuan-vae": {HunyuanVAEConfig: _autoencoder_rules("hunyuan-vae")},
    "open-sora-dc-ae": {DCAEConfig: _autoencoder_rules("open-sora-dc-ae")},
    "image-dc-ae": {DCAEConfig: _autoencoder_rules("image-dc-ae")},
    "diffusers-image-dc-ae": {DCAEConfig: _autoencoder_rules("diffusers-image-dc-ae")},
}
LAYOUTS = tuple(_RULES)
"""Every layout that can be read and written."""
PICTURE_LAYOUTS = ("image-dc-ae", "diffusers-image-dc-ae")
"""Autoencoders of pictures: kernels without a time axis. They start the training of a video autoencoder."""
_MODELS: Mapping[type, Callable[[Any], nn.Module]] = {
    MMDiTConfig: lambda config: MMDiT(replace(config, fused_qkv=False, rope_layout="half-split")),
    DCAEConfig: DCAE,
    HunyuanVAEConfig: HunyuanVAE,
    PictureVAEConfig: PictureVAE,
}
_TITLES = {
    MMDiTConfig: "an MMDiT",
    DCAEConfig: "a Video DC-AE",
    HunyuanVAEConfig: "a HunyuanVideo VAE",
    PictureVAEConfig: "FLUX.1's picture autoencoder",
}


def scheme(layout: str, config: ModelConfig) -> Scheme:
    """How a model of those sizes is stored in a layout.

    Raises:
        ConfigError: the layout is unknown or cannot hold the model.
    """
    ours = our_shapes(config, layout)
    rules = _makers(layout)[type(config)](config, ours) if type(config) in _makers(layout) else None
    if rules is None:
        fitting = [name for name in LAYOUTS if type(config) in _RULES[name]]
        raise ConfigError(
            f"layout {layout!r} cannot hold {_TITLES[type(config)]}; those that can: {', '.join(fitting)}"
        )
    return Scheme(layout, config, rules, ours, their_shapes(rules, ours))


def our_shapes(config: ModelConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our tensors; kernels without time for a layout of pictures."""
    with torch.device("meta"):
        state = _MODELS[type(config)](config).state_dict()
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


def sizes(layout: str, shapes: Shapes, what: str) -> ModelConfig:
    """Sizes of the model in a file of a layout.

    Raises:
        ConfigError: tensors that tell them are missing.
    """
    kinds = _makers(layout)
    if layout == "flux-vae" or (layout == "diffusers" and picture_layouts.DIFFUSERS_SIGN in shapes):
        try:
            return picture_layouts.picture_sizes(shapes)
        except (KeyError, IndexError) as error:
            raise ConfigError(f"{what}: missing: {error}, which tells a size of the autoencoder") from error
    if HunyuanVAEConfig in kinds and layout_of(shapes, what) == "hunyuan-vae":
        return hunyuan_sizes(shapes, what)
    if MMDiTConfig in kinds:
        return mmdit_sizes(shapes, what)
    names = autoencoder_layouts.LAYOUTS[layout]
    return dc_ae_sizes({names.to_ours(name).name: shape for name, shape in shapes.items()}, what)


def _makers(layout: str) -> Mapping[type, MakeRules]:
    if layout not in _RULES:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"layout {layout!r} is unknown; {hint}allowed: {', '.join(LAYOUTS)}")
    return _RULES[layout]
