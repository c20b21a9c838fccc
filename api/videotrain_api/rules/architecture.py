"""Sizes of the transformer, the autoencoder and the text encoder that fit together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

STAGES_OF_KIND = {"dc-ae": 6, "hunyuan-vae": 4}
_HEAD_WIDTH = 32
_FIRST_ATTENTION_STAGE = 3


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
    stages, path = STAGES_OF_KIND[spec.kind or "dc-ae"], "spec.autoencoder"
    lengths = {"widths": spec.widths, "depths": spec.depths, "decoderDepths": spec.decoder_depths}
    for name, values in lengths.items():
        if values is None or len(values) != stages or min(values) < 1:
            yield Problem(f"{path}.{name}", values, f"kind {spec.kind} needs {stages} numbers of 1 or more")
            return
    if spec.kind == "dc-ae":
        yield from _dc_ae_widths(spec.widths or [], spec.latent_channels or 1)
        yield from _not_of_dc_ae(spec)
    elif spec.norm_groups is None or any(width % spec.norm_groups for width in spec.widths or []):
        allowed = f"kind hunyuan-vae needs a number that divides every width of {spec.widths}"
        yield Problem(f"{path}.normGroups", spec.norm_groups, allowed)
    yield from _tiling(spec)


def _not_of_dc_ae(spec: AutoencoderSpec) -> Iterator[Problem]:
    for name, value in (("normGroups", spec.norm_groups), ("posterior", spec.posterior)):
        if value is not None:
            yield Problem(f"spec.autoencoder.{name}", value, "kind dc-ae has none: remove it")


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


def _dc_ae_widths(widths: list[int], latent: int) -> Iterator[Problem]:
    path = "spec.autoencoder.widths"
    for width in widths[_FIRST_ATTENTION_STAGE:]:
        if width % _HEAD_WIDTH:
            allowed = f"the last three must be multiples of the attention head width of {_HEAD_WIDTH}"
            yield Problem(path, widths, f"{allowed}; {width} is none")
    for stage, (width, after) in enumerate(pairwise(widths)):
        factor = 8 if stage >= _FIRST_ATTENTION_STAGE else 4
        if (width * factor) % after or (after * factor) % width:
            rule = f"the shortcut between {width} and {after} needs {factor} times one to be a multiple of the other"
            yield Problem(path, widths, rule)
    if widths[-1] % latent:
        allowed = f"must divide the last width of {widths[-1]}, since the shortcut averages channels"
        yield Problem("spec.autoencoder.latentChannels", latent, allowed)


def _text_encoder(facts: Facts) -> Iterator[Problem]:
    text = facts.run.spec.text_encoder
    if text.kind == "t5-clip" and text.weights is None:
        yield Problem("spec.textEncoder.weights", None, "kind t5-clip needs the folder with both encoders")
    if text.kind == "bytes" and text.trim_padding:
        yield Problem("spec.textEncoder.trimPadding", True, "kind bytes encodes no pad tokens: remove it")
    if text.kind == "bytes" and text.weights is not None:
        yield Problem("spec.textEncoder.weights", text.weights, "kind bytes has no weights: remove it or use t5-clip")
