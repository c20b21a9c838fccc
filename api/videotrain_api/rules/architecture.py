"""Sizes of the transformer, the autoencoder and the text encoder that fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final

from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.resource.autoencoder_kinds import DC_AE_ATTENTION_STAGES, KINDS, OF_SOME_KINDS, AutoencoderKind
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import ApiModel, Problem, camel_case

_HEAD_WIDTH = 32


def check_architecture(facts: Facts) -> Iterator[Problem]:
    """Everything about spec.model, spec.autoencoder and spec.textEncoder."""
    yield from facts.problems
    yield from _heads(facts.model or facts.run.spec.model)
    if facts.autoencoder:
        yield from _autoencoder(facts.autoencoder)
    yield from _text_encoder(facts)


def _heads(model: TransformerSpec) -> Iterator[Problem]:
    """What is written, or completed by the preset, fits together; also in a model that no stage uses."""
    hidden, heads, axes = model.hidden_size, model.num_heads, model.rope_axes or []
    if any(axis % 2 or axis < 2 for axis in axes):
        yield Problem(
            "spec.model.ropeAxes", axes, "allowed: even numbers of 2 or more, since they are rotated in pairs"
        )
    if hidden is None or heads is None:
        return
    if hidden % heads:
        yield Problem("spec.model.hiddenSize", hidden, f"must be a multiple of numHeads ({heads})")
    elif axes and sum(axes) != hidden // heads:
        sizes = f"hiddenSize {hidden} / numHeads {heads}"
        yield Problem("spec.model.ropeAxes", axes, f"must sum to the head dimension of {hidden // heads} ({sizes})")


def _autoencoder(spec: AutoencoderSpec) -> Iterator[Problem]:
    if spec.kind is None:
        return
    yield from _of_other_kinds(spec)
    wrong = list(_levels(spec, KINDS[spec.kind]))
    if wrong:
        yield wrong[0]
        return
    yield from _SIZES[spec.kind](spec)
    yield from _tiling(spec)


def _levels(spec: AutoencoderSpec, row: AutoencoderKind) -> Iterator[Problem]:
    """As many numbers as the kind has stages, and large enough."""
    if row.stages is None:
        return
    widths, few, many = spec.widths or [], row.stages[0], row.stages[-1]
    counts = f"{few}" if few == many else f"{few} to {many}"
    if len(widths) not in row.stages or min(widths) < 1:
        yield Problem("spec.autoencoder.widths", spec.widths, f"kind {spec.kind} needs {counts} numbers of 1 or more")
        return
    for name, depths in (("depths", spec.depths), ("decoderDepths", spec.decoder_depths)):
        if depths is None or len(depths) != len(widths) or min(depths) < row.least_depth:
            counted = f"{len(widths)} numbers of {row.least_depth} or more"
            allowed = f"kind {spec.kind} with {len(widths)} widths needs {counted}"
            yield Problem(f"spec.autoencoder.{name}", depths, allowed)


def _of_other_kinds(spec: AutoencoderSpec) -> Iterator[Problem]:
    row = KINDS[spec.kind or ""]
    for name in sorted(OF_SOME_KINDS - row.needs - row.takes):
        value = getattr(spec, name)
        if value is not None:
            shown = value.to_wire() if isinstance(value, ApiModel) else value
            yield Problem(f"spec.autoencoder.{camel_case(name)}", shown, f"kind {spec.kind} has none: remove it")


def _hunyuan_sizes(spec: AutoencoderSpec) -> Iterator[Problem]:
    if spec.norm_groups is None or any(width % spec.norm_groups for width in spec.widths or []):
        allowed = f"kind hunyuan-vae needs a number that divides every width of {spec.widths}"
        yield Problem("spec.autoencoder.normGroups", spec.norm_groups, allowed)


def _diffusers_sizes(spec: AutoencoderSpec) -> Iterator[Problem]:
    channels = spec.latent_channels or 1
    for name, values in (("latentMean", spec.latent_mean), ("latentStd", spec.latent_std)):
        if values is not None and len(values) != channels:
            allowed = f"{len(values)} numbers, but latentChannels is {channels}: one for each channel"
            yield Problem(f"spec.autoencoder.{name}", values, allowed)
    if any(value <= 0 for value in spec.latent_std or []):
        yield Problem("spec.autoencoder.latentStd", spec.latent_std, "allowed: numbers above 0")


def _tiling(spec: AutoencoderSpec) -> Iterator[Problem]:
    """Tiles are cut between latents, and so is their overlap."""
    tiles, path = spec.tiling, "spec.autoencoder.tiling"
    if tiles is None:
        return
    least = {"pixels": 1, "frames": 1 if spec.causal else 2}
    for name, size, unit in (
        ("pixels", tiles.pixels, spec.spatial_compression),
        ("frames", tiles.frames, spec.temporal_compression),
    ):
        if size is not None and (size % unit or size < least[name] * unit):
            yield Problem(f"{path}.{name}", size, f"allowed: multiples of {unit} from {least[name] * unit} on")
        elif size is not None and (tiles.overlap * size / unit) % 1:
            rule = f"with {name} {size} the overlap must be a whole number of its {size // unit} latents"
            yield Problem(f"{path}.overlap", tiles.overlap, rule)


def _dc_ae_sizes(spec: AutoencoderSpec) -> Iterator[Problem]:
    path, widths, latent = "spec.autoencoder.widths", spec.widths or [], spec.latent_channels or 1
    first_attention = len(widths) - DC_AE_ATTENTION_STAGES
    for width in widths[first_attention:]:
        if width % _HEAD_WIDTH:
            allowed = f"the last three must be multiples of the attention head width of {_HEAD_WIDTH}"
            yield Problem(path, widths, f"{allowed}; {width} is none")
    for stage, (width, after) in enumerate(pairwise(widths)):
        factor = 8 if stage >= first_attention else 4
        if (width * factor) % after or (after * factor) % width:
            rule = f"the shortcut between {width} and {after} needs {factor} times one to be a multiple of the other"
            yield Problem(path, widths, rule)
    if widths[-1] % latent:
        allowed = f"must divide the last width of {widths[-1]}, since the shortcut averages channels"
        yield Problem("spec.autoencoder.latentChannels", latent, allowed)


_SIZES: Final[Mapping[str, Callable[[AutoencoderSpec], Iterator[Problem]]]] = {
    "dc-ae": _dc_ae_sizes,
    "hunyuan-vae": _hunyuan_sizes,
    "diffusers": _diffusers_sizes,
}
"""What the sizes of each kind must fulfil."""


def _text_encoder(facts: Facts) -> Iterator[Problem]:
    text = facts.run.spec.text_encoder
    if text.kind == "t5-clip" and text.weights is None:
        yield Problem("spec.textEncoder.weights", None, "kind t5-clip needs the folder with both encoders")
    if text.kind == "bytes" and text.trim_padding:
        yield Problem("spec.textEncoder.trimPadding", True, "kind bytes encodes no pad tokens: remove it")
    if text.kind == "bytes" and text.weights is not None:
        yield Problem("spec.textEncoder.weights", text.weights, "kind bytes has no weights: remove it or use t5-clip")
