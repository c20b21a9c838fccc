"""Parameters and FLOPs of our own video autoencoders, counted layer by layer; those of diffusers have a given number.

One walk through the layers counts both, so the parameter count (checked against the published models) vouches for the
FLOP count. A multiply-add is two FLOPs; norms and activations are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from videotrain_api.resource.architecture import AutoencoderSpec
from videotrain_api.resource.autoencoder_kinds import DC_AE_ATTENTION_STAGES

_HEAD_WIDTH = 32
_TIME_STEPS = 2
_Size = tuple[int, int]
"""Frames, and positions of a frame."""


@dataclass
class _Tally:
    parameters: int = 0
    flops: int = 0

    def conv(self, size: _Size, into: int, out: int, kernel: int, *, bias: bool = True, groups: int = 1) -> None:
        weights = kernel * (into // groups) * out
        self.parameters += weights + (out if bias else 0)
        self.flops += 2 * weights * size[0] * size[1]

    def norm(self, width: int) -> None:
        self.parameters += 2 * width


@dataclass(frozen=True)
class AutoencoderCost:
    """Size and work of one half of an autoencoder."""

    parameters: int
    flops: int
    """Forward FLOPs of one clip."""


def encoder_cost(spec: AutoencoderSpec, frames: int, height: int, width: int) -> AutoencoderCost:
    """Encoder on one clip of frames x height x width pixels, in the tiles of the specification.

    Nothing is counted of a kind whose layers only its weights tell.
    """
    if spec.kind not in _COUNTED:
        return AutoencoderCost(0, 0)
    return _tiled(spec, _encode, frames, height, width)


def decoder_cost(spec: AutoencoderSpec, frames: int, height: int, width: int) -> AutoencoderCost:
    """Decoder that makes one clip of frames x height x width pixels, in the tiles of the specification.

    Nothing is counted of a kind whose layers only its weights tell, unless the specification says what it takes.
    """
    if spec.decode_flops_per_pixel is not None:
        return AutoencoderCost(0, spec.decode_flops_per_pixel * frames * height * width)
    if spec.kind not in _COUNTED:
        return AutoencoderCost(0, 0)
    return _tiled(spec, _decode, frames, height, width)


def autoencoder_parameters(spec: AutoencoderSpec) -> int:
    """Parameters of encoder and decoder."""
    side = spec.spatial_compression
    return _encode(spec, 1, side, side).parameters + _decode(spec, 1, side, side).parameters


def largest_unit(spec: AutoencoderSpec) -> int:
    """Parameters of the largest part of a DC-AE that is gathered and reduced as one: a block, or what is in none."""
    widths, depths, decoder_depths, _ = _shape(spec)
    blocks: list[int] = []
    for stage, width in enumerate(widths):
        one = _Tally()
        _dc_blocks(one, stage, len(widths), width, 1, (1, 1))
        # The last block at the decoder's pixels is never computed again and belongs to the rest.
        blocks += [one.parameters] * (depths[stage] + decoder_depths[stage] - (stage == 0 < decoder_depths[0]))
    return max([*blocks, autoencoder_parameters(spec) - sum(blocks)])


def autoencoder_train_flops(spec: AutoencoderSpec, frames: int, height: int, width: int) -> int:
    """Forward and backward FLOPs (three times forward) of one training clip, which is never cut into tiles."""
    return 3 * (_encode(spec, frames, height, width).flops + _decode(spec, frames, height, width).flops)


def head_train_flops(spec: AutoencoderSpec, height: int, width: int) -> int:
    """The same of the first frame of a clip that is also encoded by itself."""
    return 3 * _encode(spec, 1, height, width).flops


def _encode(spec: AutoencoderSpec, frames: int, height: int, width: int) -> _Tally:
    counted = _COUNTED[spec.kind or ""]
    tally, sizes = _Tally(), _sizes(spec, frames, height, width, counted.encoder_halves(len(spec.widths or ())))
    counted.encoder(tally, spec, sizes)
    return tally


def _decode(spec: AutoencoderSpec, frames: int, height: int, width: int) -> _Tally:
    counted = _COUNTED[spec.kind or ""]
    tally, sizes = _Tally(), _sizes(spec, frames, height, width, counted.decoder_halves(len(spec.widths or ())))
    counted.decoder(tally, spec, sizes)
    return tally


_Half = Callable[[AutoencoderSpec, int, int, int], _Tally]


def _tiled(spec: AutoencoderSpec, half: _Half, frames: int, height: int, width: int) -> AutoencoderCost:
    whole = half(spec, frames, height, width)
    shapes = Counter(product(*tile_sizes(spec, (frames, height, width), decoding=half is _decode)))
    return AutoencoderCost(whole.parameters, sum(n * half(spec, *shape).flops for shape, n in shapes.items()))


def tile_sizes(
    spec: AutoencoderSpec, size: tuple[int, int, int], *, decoding: bool
) -> tuple[list[int], list[int], list[int]]:
    """Frames, rows and columns of the tiles in which a clip of that size in pixels is coded: one of each if in none."""
    (frames, height, width), tiles = size, spec.tiling
    if tiles is None:
        return [frames], [height], [width]
    unit, step = spec.spatial_compression, spec.temporal_compression
    latents = spec.time.latent_frames(frames)
    counts = _tiles(latents, tiles.frames and tiles.frames // step, tiles.overlap, spec.causal, decoding)
    times = [frames if count == latents else step * (count - spec.causal) + spec.causal for count in counts]
    side = tiles.pixels and tiles.pixels // unit
    # A picture that does not fit into a tile is cut along both sides, also along one that would fit.
    cut = side is not None and max(height, width) > unit * side
    rows, columns = (
        [unit * count for count in _tiles(length // unit, side, tiles.overlap, always=cut)]
        for length in (height, width)
    )
    return times, rows, columns


def _tiles(
    latents: int,
    tile: int | None,
    overlap: float,
    causal: bool = False,
    decoding_time: bool = False,
    always: bool = False,
) -> list[int]:
    """Latents that each tile along an axis reads; the trainer's tiling cuts the same ones."""
    if tile is None or (latents <= tile and not always):
        return [latents]
    stride = tile - round(overlap * tile)
    found = [min(tile + causal, latents - start) for start in range(0, latents, stride)]
    if decoding_time and not causal and found[-1] == 1:
        found[-1] = 2
    return found[:-1] if causal and found[-1] == 1 else found


def _sizes(spec: AutoencoderSpec, frames: int, height: int, width: int, halved: range) -> list[_Size]:
    """(frames, positions of a frame) at every stage from pixels to latents; time halves behind stages of `halved`."""
    sizes = []
    for stage in range(len(spec.widths or ())):
        sizes.append((frames, height * width))
        height, width = height // 2, width // 2
        frames = (frames + 1) // 2 if stage in halved else frames
    return sizes


def _shape(spec: AutoencoderSpec) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    if not (spec.widths and spec.depths and spec.decoder_depths and spec.latent_channels):
        raise ValueError("the specification is not complete; call presets.complete_autoencoder first")
    return spec.widths, spec.depths, spec.decoder_depths, spec.latent_channels


# ------------------------------------------------------------------------------------------------- Video DC-AE
def _dc_encoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[_Size]) -> None:
    widths, depths, _, latent = _shape(spec)
    tally.conv(sizes[0], 3, widths[0], 27)
    for stage, width in enumerate(widths):
        _dc_blocks(tally, stage, len(widths), width, depths[stage], sizes[stage])
        if stage + 1 < len(widths):
            tally.conv(sizes[stage + 1], width, widths[stage + 1], 27)
    tally.conv(sizes[-1], widths[-1], latent, 27)


def _dc_decoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[_Size]) -> None:
    widths, _, depths, latent = _shape(spec)
    tally.conv(sizes[-1], latent, widths[-1], 27)
    for stage in reversed(range(len(widths))):
        if stage + 1 < len(widths):
            tally.conv(sizes[stage], widths[stage + 1], widths[stage], 27)
        _dc_blocks(tally, stage, len(widths), widths[stage], depths[stage], sizes[stage])
    tally.norm(widths[0])
    tally.conv(sizes[0], widths[0], 3, 27)


def _dc_halves(stages: int) -> range:
    return range(stages - DC_AE_ATTENTION_STAGES, stages - 1)


def _dc_blocks(tally: _Tally, stage: int, stages: int, width: int, depth: int, size: _Size) -> None:
    for _ in range(depth):
        if stage < stages - DC_AE_ATTENTION_STAGES:
            tally.conv(size, width, width, 27)
            tally.conv(size, width, width, 27, bias=False)
            tally.norm(width)
        else:
            _linear_attention(tally, width, size)
            _gated_conv(tally, width, size)


def _linear_attention(tally: _Tally, width: int, size: _Size) -> None:
    tally.conv(size, width, 3 * width, 1, bias=False)
    tally.conv(size, 3 * width, 3 * width, 125, bias=False, groups=3 * width)
    tally.conv(size, 3 * width, 3 * width, 1, bias=False, groups=3 * width // _HEAD_WIDTH)
    heads = 2 * width // _HEAD_WIDTH
    tally.flops += 2 * 2 * heads * _HEAD_WIDTH * (_HEAD_WIDTH + 1) * size[0] * size[1]
    tally.conv(size, 2 * width, width, 1, bias=False)
    tally.norm(width)


def _gated_conv(tally: _Tally, width: int, size: _Size) -> None:
    tally.conv(size, width, 8 * width, 1)
    tally.conv(size, 8 * width, 8 * width, 27, groups=8 * width)
    tally.conv(size, 4 * width, width, 1, bias=False)
    tally.norm(width)


# ------------------------------------------------------------------------------------------------- HunyuanVideo
def _hunyuan_encoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[_Size]) -> None:
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


def _hunyuan_decoder(tally: _Tally, spec: AutoencoderSpec, sizes: list[_Size]) -> None:
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


def _resnets(tally: _Tally, into: int, out: int, count: int, size: _Size) -> None:
    for _ in range(count):
        tally.norm(into)
        tally.conv(size, into, out, 27)
        tally.norm(out)
        tally.conv(size, out, out, 27)
        if into != out:
            tally.conv(size, into, out, 1)
        into = out


def _middle(tally: _Tally, width: int, size: _Size) -> None:
    _resnets(tally, width, width, 2, size)
    tally.norm(width)
    for _ in range(4):
        tally.conv(size, width, width, 1)
    frames, positions = size
    # Every frame attends to itself and the earlier ones.
    tally.flops += 4 * positions * positions * width * frames * (frames + 1) // 2


# ------------------------------------------------------------------------------------------------- the table
_Walk = Callable[[_Tally, AutoencoderSpec, list[_Size]], None]


@dataclass(frozen=True)
class _Counted:
    """How a kind is counted; the halves say behind which stages (of how many) the time is half as long."""

    encoder: _Walk
    decoder: _Walk
    encoder_halves: Callable[[int], range]
    decoder_halves: Callable[[int], range]


_COUNTED: Mapping[str, _Counted] = {
    "dc-ae": _Counted(_dc_encoder, _dc_decoder, _dc_halves, _dc_halves),
    # The decoder doubles the time in its last two steps, so the stages next to the latents are short.
    "hunyuan-vae": _Counted(
        _hunyuan_encoder, _hunyuan_decoder, lambda stages: range(1, stages - 1), lambda _: range(_TIME_STEPS)
    ),
}
"""Kinds whose layers are known; the others say `decodeFlopsPerPixel`."""
