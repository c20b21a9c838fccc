"""Parameters and FLOPs of the two video autoencoders, counted layer by layer.

One walk through the layers counts both, so the parameter count (checked against the published models) vouches for the
FLOP count. A multiply-add is two FLOPs; norms and activations are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from videotrain_api.architecture import AutoencoderSpec

_HEAD_WIDTH = 32
_EVIT_FROM = 3
_TIME_FROM = {"dc-ae": 3, "hunyuan-vae": 1}


@dataclass
class _Tally:
    parameters: int = 0
    flops: int = 0

    def conv(self, positions: int, into: int, out: int, kernel: int, *, bias: bool = True, groups: int = 1) -> None:
        weights = kernel * (into // groups) * out
        self.parameters += weights + (out if bias else 0)
        self.flops += 2 * weights * positions

    def norm(self, width: int) -> None:
        self.parameters += 2 * width


@dataclass(frozen=True)
class AutoencoderCost:
    """Size and work of one half of an autoencoder."""

    parameters: int
    flops: int
    """Forward FLOPs of one clip."""


def encoder_cost(spec: AutoencoderSpec, frames: int, height: int, width: int) -> AutoencoderCost:
    """Encoder on one clip of frames x height x width pixels, without tiling."""
    tally, sizes = _Tally(), _positions(spec, frames, height, width)
    (_dc_encoder if spec.kind == "dc-ae" else _hunyuan_encoder)(tally, spec, sizes)
    return AutoencoderCost(tally.parameters, tally.flops)


def decoder_cost(spec: AutoencoderSpec, frames: int, height: int, width: int) -> AutoencoderCost:
    """Decoder that makes one clip of frames x height x width pixels, without tiling."""
    tally, sizes = _Tally(), _positions(spec, frames, height, width)
    (_dc_decoder if spec.kind == "dc-ae" else _hunyuan_decoder)(tally, spec, sizes)
    return AutoencoderCost(tally.parameters, tally.flops)


def autoencoder_parameters(spec: AutoencoderSpec) -> int:
    """Parameters of encoder and decoder."""
    side = spec.spatial_compression
    return encoder_cost(spec, 1, side, side).parameters + decoder_cost(spec, 1, side, side).parameters


def autoencoder_train_flops(spec: AutoencoderSpec, frames: int, height: int, width: int) -> int:
    """Forward and backward FLOPs (three times forward) of one training clip."""
    encoder, decoder = encoder_cost(spec, frames, height, width), decoder_cost(spec, frames, height, width)
    return 3 * (encoder.flops + decoder.flops)


def _positions(spec: AutoencoderSpec, frames: int, height: int, width: int) -> list[int]:
    """Positions (t x h x w) at every stage from pixels to latents."""
    time_from = _TIME_FROM[spec.kind or "dc-ae"]
    sizes = []
    for stage in range(len(spec.widths or ())):
        sizes.append(frames * height * width)
        height, width = height // 2, width // 2
        frames = (frames + 1) // 2 if stage >= time_from else frames
    return sizes


def _shape(spec: AutoencoderSpec) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    if not (spec.widths and spec.depths and spec.decoder_depths and spec.latent_channels):
        raise ValueError("the specification is not complete; call presets.complete_autoencoder first")
    return spec.widths, spec.depths, spec.decoder_depths, spec.latent_channels


# ------------------------------------------------------------------------------------------------- Video DC-AE
def _dc_encoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[int]) -> None:
    widths, depths, _, latent = _shape(spec)
    tally.conv(sizes[0], 3, widths[0], 27)
    for stage, width in enumerate(widths):
        _dc_blocks(tally, stage, width, depths[stage], sizes[stage])
        if stage + 1 < len(widths):
            tally.conv(sizes[stage + 1], width, widths[stage + 1], 27)
    tally.conv(sizes[-1], widths[-1], latent, 27)


def _dc_decoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[int]) -> None:
    widths, _, depths, latent = _shape(spec)
    tally.conv(sizes[-1], latent, widths[-1], 27)
    for stage in reversed(range(len(widths))):
        if stage + 1 < len(widths):
            tally.conv(sizes[stage], widths[stage + 1], widths[stage], 27)
        _dc_blocks(tally, stage, widths[stage], depths[stage], sizes[stage])
    tally.norm(widths[0])
    tally.conv(sizes[0], widths[0], 3, 27)


def _dc_blocks(tally: _Tally, stage: int, width: int, depth: int, positions: int) -> None:
    for _ in range(depth):
        if stage < _EVIT_FROM:
            tally.conv(positions, width, width, 27)
            tally.conv(positions, width, width, 27, bias=False)
            tally.norm(width)
        else:
            _linear_attention(tally, width, positions)
            _gated_conv(tally, width, positions)


def _linear_attention(tally: _Tally, width: int, positions: int) -> None:
    tally.conv(positions, width, 3 * width, 1, bias=False)
    tally.conv(positions, 3 * width, 3 * width, 125, bias=False, groups=3 * width)
    tally.conv(positions, 3 * width, 3 * width, 1, bias=False, groups=3 * width // _HEAD_WIDTH)
    heads = 2 * width // _HEAD_WIDTH
    tally.flops += 2 * 2 * heads * _HEAD_WIDTH * (_HEAD_WIDTH + 1) * positions
    tally.conv(positions, 2 * width, width, 1, bias=False)
    tally.norm(width)


def _gated_conv(tally: _Tally, width: int, positions: int) -> None:
    tally.conv(positions, width, 8 * width, 1)
    tally.conv(positions, 8 * width, 8 * width, 27, groups=8 * width)
    tally.conv(positions, 4 * width, width, 1, bias=False)
    tally.norm(width)


# ------------------------------------------------------------------------------------------------- HunyuanVideo
def _hunyuan_encoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[int]) -> None:
    widths, depths, _, latent = _shape(spec)
    tally.conv(sizes[0], 3, widths[0], 27)
    for stage, (before, width) in enumerate(pairwise([widths[0], *widths])):
        _resnets(tally, before, width, depths[stage], sizes[stage])
        if stage + 1 < len(widths):
            tally.conv(sizes[stage + 1], width, width, 27)
    _middle(tally, widths[-1], sizes[-1])
    tally.norm(widths[-1])
    tally.conv(sizes[-1], widths[-1], 2 * latent, 27)
    tally.conv(sizes[-1], 2 * latent, 2 * latent, 1)


def _hunyuan_decoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[int]) -> None:
    widths, _, depths, latent = _shape(spec)
    tally.conv(sizes[-1], latent, latent, 1)
    tally.conv(sizes[-1], latent, widths[-1], 27)
    _middle(tally, widths[-1], sizes[-1])
    before = widths[-1]
    for stage in reversed(range(len(widths))):
        _resnets(tally, before, widths[stage], depths[stage], sizes[stage])
        before = widths[stage]
        if stage > 0:
            tally.conv(sizes[stage - 1], before, before, 27)
    tally.norm(widths[0])
    tally.conv(sizes[0], widths[0], 3, 27)


def _resnets(tally: _Tally, into: int, out: int, count: int, positions: int) -> None:
    for _ in range(count):
        tally.norm(into)
        tally.conv(positions, into, out, 27)
        tally.norm(out)
        tally.conv(positions, out, out, 27)
        if into != out:
            tally.conv(positions, into, out, 1)
        into = out


def _middle(tally: _Tally, width: int, positions: int) -> None:
    _resnets(tally, width, width, 2, positions)
    tally.norm(width)
    for _ in range(4):
        tally.conv(positions, width, width, 1)
    tally.flops += 4 * positions * positions * width
