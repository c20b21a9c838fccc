"""Named architectures: what `model.preset` and `autoencoder.preset` stand for.

Sizes are those of the published models (Open-Sora 2.0 report and weights, FLUX.1-dev, HunyuanVideo); the `tiny` ones
have the same structure at a size that a CPU trains.
"""

from __future__ import annotations

import difflib
from typing import Final, TypeVar

from videotrain_api.resource.architecture import (
    AutoencoderCompression,
    AutoencoderSpec,
    AutoencoderTiling,
    TextEncoderSpec,
    TransformerSpec,
)
from videotrain_api.resource.autoencoder_kinds import KINDS, OF_SOME_KINDS
from videotrain_api.schema import ManifestError, Problem

_MMDIT_11B: Final = TransformerSpec(
    hidden_size=3072,
    num_heads=24,
    double_blocks=19,
    single_blocks=38,
    mlp_ratio=4.0,
    rope_axes=[16, 56, 56],
    patch_size=2,
    cond_embed=True,
    guidance_embed=False,
)
_MMDIT_TINY: Final = TransformerSpec(
    hidden_size=64,
    num_heads=4,
    double_blocks=2,
    single_blocks=2,
    mlp_ratio=4.0,
    rope_axes=[4, 6, 6],
    patch_size=2,
    cond_embed=True,
    guidance_embed=False,
)
_DC_AE: Final = AutoencoderSpec(
    kind="dc-ae",
    latent_channels=128,
    widths=[128, 256, 512, 512, 1024, 1024],
    depths=[2, 2, 2, 3, 3, 3],
    decoder_depths=[3, 3, 3, 3, 3, 3],
    scaling_factor=0.493,
    # The clips that it was trained on.
    tiling=AutoencoderTiling(pixels=256, frames=32),
)

_DC_AE_TINY: Final = AutoencoderSpec(
    kind="dc-ae",
    latent_channels=64,
    widths=[8, 16, 32, 32, 128, 128],
    depths=[1, 1, 1, 1, 1, 1],
    decoder_depths=[1, 1, 1, 1, 1, 1],
    # No scale: it has no published weights, so the run that trains it measures one.
)


def _of_diffusers(channels: int, time: int, space: int, decode_flops_per_pixel: int) -> AutoencoderSpec:
    """An autoencoder of diffusers at its published size; everything else stands in the folder of its weights."""
    return AutoencoderSpec(
        kind="diffusers",
        latent_channels=channels,
        compression=AutoencoderCompression(time=time, space=space),
        causality="causal",
        decode_flops_per_pixel=decode_flops_per_pixel,
    )


TRANSFORMERS: Final[dict[str, TransformerSpec]] = {
    "mmdit-11b": _MMDIT_11B,
    "mmdit-11b-dcae": _MMDIT_11B.model_copy(update={"patch_size": 1}),
    "flux-dev": _MMDIT_11B.model_copy(update={"cond_embed": False, "guidance_embed": True}),
    "mmdit-tiny": _MMDIT_TINY,
    "mmdit-tiny-dcae": _MMDIT_TINY.model_copy(update={"patch_size": 1}),
    "flux-dev-tiny": _MMDIT_TINY.model_copy(update={"cond_embed": False, "guidance_embed": True}),
}
"""Transformers by preset name; every architecture field is set."""

AUTOENCODERS: Final[dict[str, AutoencoderSpec]] = {
    "dc-ae-f32t4c128": _DC_AE,
    # No scale is published for 256 channels; the one of 128 channels stands in until it is measured.
    "dc-ae-f32t4c256": _DC_AE.model_copy(update={"latent_channels": 256}),
    "hunyuan-vae": AutoencoderSpec(
        kind="hunyuan-vae",
        latent_channels=16,
        widths=[128, 256, 512, 512],
        depths=[2, 2, 2, 2],
        decoder_depths=[3, 3, 3, 3],
        scaling_factor=0.476986,
        norm_groups=32,
        posterior="sample",
        # Open-Sora 2.0 was trained on latents that were coded so: tiles in space, all frames at once.
        tiling=AutoencoderTiling(pixels=256),
    ),
    "hunyuan-vae-tiny": AutoencoderSpec(
        kind="hunyuan-vae",
        latent_channels=16,
        widths=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        decoder_depths=[2, 2, 2, 2],
        norm_groups=4,
        posterior="sample",
    ),
    "dc-ae-tiny": _DC_AE_TINY,
    # Twice the channels, as dc-ae-f32t4c256 has of dc-ae-f32t4c128.
    "dc-ae-tiny-c128": _DC_AE_TINY.model_copy(update={"latent_channels": 128}),
    # AutoencoderKLWan of Wan 2.1 and of Wan 2.2 TI2V, AutoencoderKLHunyuanVideo15, AutoencoderKLLTXVideo (0.9.0),
    # AutoencoderKLCosmos, AutoencoderKLCogVideoX, AutoencoderKLMochi; FLOPs as torch counts them
    # (8 or, from 6 frames a latent on, 4 latent frames behind the first, 256 x 256 pixels).
    "wan-vae": _of_diffusers(16, 4, 8, 8_521_381),
    "wan22-vae": _of_diffusers(48, 4, 16, 18_528_063),
    "hunyuan-video-15-vae": _of_diffusers(32, 4, 16, 25_149_347),
    "ltx-vae": _of_diffusers(128, 8, 32, 891_722),
    "cosmos-vae": _of_diffusers(16, 8, 8, 557_742),
    "cogvideox-vae": _of_diffusers(16, 4, 8, 18_634_069),
    "mochi-vae": _of_diffusers(12, 6, 8, 18_966_278),
}
"""Autoencoders by preset name; every architecture field is set, the scale of the latents where it is known."""

_FULL_TEXT: Final = TextEncoderSpec(kind="t5-clip")
_TINY_TEXT: Final = TextEncoderSpec(kind="bytes", context_dim=64, pooled_dim=32, max_tokens=64)

COMPANIONS: Final[dict[str, tuple[str, TextEncoderSpec]]] = {
    "mmdit-11b": ("hunyuan-vae", _FULL_TEXT),
    "mmdit-11b-dcae": ("dc-ae-f32t4c128", _FULL_TEXT),
    # The picture autoencoder of FLUX.1 has latents of the same size.
    "flux-dev": ("hunyuan-vae", _FULL_TEXT),
    "mmdit-tiny": ("hunyuan-vae-tiny", _TINY_TEXT),
    "mmdit-tiny-dcae": ("dc-ae-tiny", _TINY_TEXT),
    "flux-dev-tiny": ("hunyuan-vae-tiny", _TINY_TEXT),
}
"""Autoencoder preset and text encoder that each transformer was made for; a manifest names its own."""

_NOT_ARCHITECTURE: Final = frozenset({"preset", "weights"})
_MAY_STAY_UNSET: Final = frozenset({"scaling_factor", "tiling"})
_Spec = TypeVar("_Spec", TransformerSpec, AutoencoderSpec)


def complete_transformer(spec: TransformerSpec, path: str = "spec.model") -> TransformerSpec:
    """The specification with every architecture field set: written fields over those of its preset.

    Raises:
        ManifestError: the preset is unknown, or there is none and a field is missing.
    """
    return _complete(spec, TRANSFORMERS, path)


def complete_autoencoder(spec: AutoencoderSpec, path: str = "spec.autoencoder") -> AutoencoderSpec:
    """The same for the autoencoder. The scaling factor may stay unset, since it travels with trained weights, and what
    only one kind has.

    Raises:
        ManifestError: the preset is unknown, or there is none and a field is missing.
    """
    return _complete(spec, AUTOENCODERS, path)


def _complete(spec: _Spec, presets: dict[str, _Spec], path: str) -> _Spec:
    if spec.preset is not None and spec.preset not in presets:
        raise ManifestError([_unknown_preset(spec.preset, sorted(presets), path)])
    base = presets[spec.preset] if spec.preset else spec
    names = [name for name in type(spec).model_fields if name not in _NOT_ARCHITECTURE]
    values = {name: _first(getattr(spec, name), getattr(base, name)) for name in names}
    optional = _MAY_STAY_UNSET | _unneeded(values.get("kind")) if "kind" in values else _MAY_STAY_UNSET
    missing = [name for name, value in values.items() if value is None and name not in optional]
    if missing:
        raise ManifestError([_missing_field(type(spec), name, sorted(presets), path) for name in missing])
    return spec.model_copy(update=values)


def _unneeded(kind: object) -> frozenset[str]:
    """Fields that an autoencoder of the kind can do without; without a kind, those that only some kinds have."""
    row = KINDS.get(str(kind))
    return OF_SOME_KINDS - (row.needs if row else KINDS["dc-ae"].needs)


def _first(written: object, preset: object) -> object:
    return preset if written is None else written


def _unknown_preset(name: str, known: list[str], path: str) -> Problem:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return Problem(f"{path}.preset", name, f"unknown preset; {hint}allowed: {', '.join(known)}")


def _missing_field(model: type[_Spec], name: str, known: list[str], path: str) -> Problem:
    wire = model.model_fields[name].alias or name
    return Problem(f"{path}.{wire}", None, f"set it, or set {path}.preset to one of: {', '.join(known)}")
