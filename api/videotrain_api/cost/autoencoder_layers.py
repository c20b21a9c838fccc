"""The layers of our own video autoencoders in the order in which they run, with the sizes that memory follows from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.autoencoder_kinds import DC_AE_ATTENTION_STAGES

Size = tuple[int, int, int]
"""Frames, rows, columns."""
_TIME_LEVELS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer, or a block that is computed again as a whole."""

    kind: str
    """Such as `dc_block` or `hunyuan_up`."""
    into: int
    """Channels of what it is given."""
    out: int
    before: Size
    after: Size
    first: bool = False
    """The first of those that run in one module, which holds its input until the last of them has run."""
    step: int = 1
    """By how much it divides or multiplies the time."""


# ------------------------------------------------------------------------------------------------- Video DC-AE
def encoder_layers(spec: AutoencoderSpec, size: Size) -> list[Layer]:
    """Layers of the encoder that is given a clip, or a tile, of that size in pixels."""
    return list(_dc_encoder(spec, size) if spec.kind == "dc-ae" else _hunyuan_encoder(spec, size))


def decoder_layers(spec: AutoencoderSpec, size: Size) -> list[Layer]:
    """Layers of the decoder that makes a clip, or a tile, of that size in pixels."""
    return list(_dc_decoder(spec, size) if spec.kind == "dc-ae" else _hunyuan_decoder(spec, size))


def _dc_encoder(spec: AutoencoderSpec, size: Size) -> Iterator[Layer]:
    widths, depths, latent, sizes = _levels(spec.widths), _levels(spec.depths), spec.latent_channels or 0, [size]
    yield Layer(kind="dc_in", into=3, out=widths[0], before=size, after=size, first=True)
    for stage, width in enumerate(widths):
        yield from _dc_blocks(_is_attention(spec, stage), width, depths[stage], sizes[-1], first=True)
        if stage + 1 < len(widths):
            sizes.append(_dc_below(sizes[-1], _is_attention(spec, stage)))
            sides: dict[str, Any] = {"before": sizes[-2], "after": sizes[-1], "first": not depths[stage]}
            yield Layer(kind="dc_down", into=width, out=widths[stage + 1], **sides)
    yield Layer(kind="dc_project_out", into=widths[-1], out=latent, before=sizes[-1], after=sizes[-1], first=True)


def _dc_decoder(spec: AutoencoderSpec, size: Size) -> Iterator[Layer]:
    widths, depths, latent = _levels(spec.widths), _levels(spec.decoder_depths), spec.latent_channels or 0
    sizes = [size]
    for stage in range(len(widths) - 1):
        sizes.append(_dc_below(sizes[-1], _is_attention(spec, stage)))
    yield Layer(kind="dc_project_in", into=latent, out=widths[-1], before=sizes[-1], after=sizes[-1], first=True)
    for stage in reversed(range(len(widths))):
        up = stage + 1 < len(widths)
        if up:
            step = 2 if sizes[stage][0] > sizes[stage + 1][0] else 1
            sides: dict[str, Any] = {"before": sizes[stage + 1], "after": sizes[stage], "first": True, "step": step}
            yield Layer(kind="dc_up", into=widths[stage + 1], out=widths[stage], **sides)
        yield from _dc_blocks(_is_attention(spec, stage), widths[stage], depths[stage], sizes[stage], first=not up)
    yield Layer(kind="dc_head", into=widths[0], out=3, before=size, after=size, first=True)


def _is_attention(spec: AutoencoderSpec, stage: int) -> bool:
    return stage >= len(_levels(spec.widths)) - DC_AE_ATTENTION_STAGES


def _dc_blocks(attention: bool, width: int, depth: int, size: Size, *, first: bool) -> Iterator[Layer]:
    kind = "dc_attention" if attention else "dc_block"
    for number in range(depth):
        yield Layer(kind=kind, into=width, out=width, before=size, after=size, first=first and not number)


def _dc_below(size: Size, halves: bool) -> Size:
    frames, rows, columns = size
    return -(-frames // 2) if halves else frames, rows // 2, columns // 2


# ------------------------------------------------------------------------------------------------- HunyuanVideo
def _hunyuan_encoder(spec: AutoencoderSpec, size: Size) -> Iterator[Layer]:
    widths, depths, latent = _levels(spec.widths), _levels(spec.depths), spec.latent_channels or 0
    yield Layer(kind="hunyuan_in", into=3, out=widths[0], before=size, after=size, first=True)
    for stage, (before, width) in enumerate(pairwise([widths[0], *widths])):
        yield from _resnets(before, width, depths[stage], size)
        if stage + 1 < len(widths):
            step = 2 if stage >= len(widths) - 1 - _TIME_LEVELS else 1
            below = _hunyuan_below(size, step)
            yield Layer(kind="hunyuan_down", into=width, out=width, before=size, after=below, step=step)
            size = below
    yield from _middle(widths[-1], size)
    yield Layer(kind="hunyuan_head", into=widths[-1], out=2 * latent, before=size, after=size)
    yield Layer(kind="hunyuan_quant", into=2 * latent, out=2 * latent, before=size, after=size, first=True)


def _hunyuan_decoder(spec: AutoencoderSpec, size: Size) -> Iterator[Layer]:
    widths, depths, latent = _levels(spec.widths), _levels(spec.decoder_depths), spec.latent_channels or 0
    sizes = [size]
    for stage in range(len(widths) - 1):
        sizes.append(_hunyuan_below(sizes[-1], 2 if stage < _TIME_LEVELS else 1))
    yield Layer(kind="hunyuan_quant", into=latent, out=latent, before=sizes[-1], after=sizes[-1], first=True)
    yield Layer(kind="hunyuan_in", into=latent, out=widths[-1], before=sizes[-1], after=sizes[-1], first=True)
    yield from _middle(widths[-1], sizes[-1])
    before = widths[-1]
    for stage in reversed(range(len(widths))):
        yield from _resnets(before, widths[stage], depths[stage], sizes[stage])
        before = widths[stage]
        if stage:
            sides: dict[str, Any] = {
                "before": sizes[stage],
                "after": sizes[stage - 1],
                "step": 2 if stage <= _TIME_LEVELS else 1,
            }
            yield Layer(kind="hunyuan_up", into=before, out=before, **sides)
    yield Layer(kind="hunyuan_head", into=widths[0], out=3, before=size, after=size, first=True)


def _hunyuan_below(size: Size, factor: int) -> Size:
    """The next size on the way from pixels to latents; the first frame stands for itself."""
    frames, rows, columns = size
    return 1 + (frames - 1) // factor, rows // 2, columns // 2


def _resnets(into: int, out: int, count: int, size: Size) -> Iterator[Layer]:
    for number in range(count):
        width = into if number == 0 else out
        yield Layer(kind="hunyuan_resnet", into=width, out=out, before=size, after=size, first=number == 0)


def _middle(width: int, size: Size) -> Iterator[Layer]:
    sides: dict[str, Any] = {"into": width, "out": width, "before": size, "after": size}
    yield Layer(kind="hunyuan_resnet", first=True, **sides)
    yield Layer(kind="hunyuan_attention", **sides)
    yield Layer(kind="hunyuan_resnet", **sides)


def _levels(numbers: list[int] | None) -> list[int]:
    if numbers is None:
        raise ValueError("the specification is not complete; call presets.complete_autoencoder first")
    return numbers
