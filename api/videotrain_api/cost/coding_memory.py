"""GPU memory of encoding and decoding a clip, without gradients and in the tiles of the specification, by arithmetic.

A layer needs its input, its result and what is between, as the trainer's networks compute without gradients: a range
of frames at a time where a norm or a convolution would be large. Beside what is read and what is made, a coding needs
what its largest tile needs. Bytes are those of bfloat16, which GPUs code in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Final

from videotrain_api.cost.autoencoder_flops import tile_sizes
from videotrain_api.cost.autoencoder_layers import Layer, Size, decoder_layers, encoder_layers
from videotrain_api.resource.architecture import AutoencoderSpec

NORM_VALUES: Final = 2**26
"""Values of one norm of a DC-AE; of more a range of frames at a time."""
PIXELS_AT_ONCE: Final = 65 * 256 * 256
"""Of clips that a GPU encodes together: as many as one tile of a long video has, so that memory stays what it is."""
CONV_VALUES: Final = 2**27
"""Input values of one convolution of a HunyuanVideo VAE; more are convolved in ranges of frames."""
_BYTES: Final = 2
_COLOURS: Final = 3
_NORM_BYTES: Final = 12
"""Of a value in the norm of a DC-AE: two float32 copies, one rounded and the result."""
_ATTENTION_BYTES: Final = 66.75
"""Of a value in linear attention: queries, keys and values of both scales, in float32, and their products."""
_HEADS_BYTES: Final = 16
"""Of a value in attention of one head: normed, queries, keys, values, results by frame, together, out and turned."""


def encode_memory(spec: AutoencoderSpec, size: Size) -> int:
    """Most bytes of encoding one clip of that size in pixels: clip, latents and all between."""
    tile = _largest(tile_sizes(spec, size, decoding=False))
    moments = 2 * (spec.latent_channels or 0)
    # Moments of a tile are faded into those of its neighbours and copied to their place: in time, rows and columns.
    latents = 3 * moments * (_latents(spec, size) + _latents(spec, tile))
    return round(_BYTES * (_COLOURS * prod(size) + latents) + _most(encoder_layers(spec, tile)))


def encode_batch_memory(spec: AutoencoderSpec, size: Size) -> int:
    """The same of as many clips as are encoded together: one after the other in tiles, or all at once."""
    clips = max(1, PIXELS_AT_ONCE // prod(size))
    if spec.tiling is None:
        return clips * encode_memory(spec, size)
    return encode_memory(spec, size) + (clips - 1) * _BYTES * _COLOURS * prod(size)


def decode_memory(spec: AutoencoderSpec, size: Size) -> int:
    """Most bytes of decoding one clip to that size in pixels."""
    times, rows, columns = tile_sizes(spec, size, decoding=True)
    tile = _largest((times, rows, columns))
    pixels = float(prod(size))
    overlap = spec.tiling.overlap if spec.tiling else 0.0
    if len(times) > 1:  # the frames of a tile, those of the one before it, and the end that they are faded over
        pixels += (2 + overlap) * tile[0] * size[1] * size[2]
    if len(rows) * len(columns) > 1:  # the same of a strip of tiles; one tile and the ends on its way
        pixels += (2 + overlap) * tile[0] * tile[1] * size[2] + (1 + overlap) * prod(tile)
    latents = 2 * (spec.latent_channels or 0) * _latents(spec, size)
    return round(_BYTES * (_COLOURS * pixels + latents) + _most(decoder_layers(spec, tile)))


def _largest(tiles: tuple[Sequence[int], Sequence[int], Sequence[int]]) -> Size:
    times, rows, columns = tiles
    return max(times), max(rows), max(columns)


def _latents(spec: AutoencoderSpec, size: Size) -> int:
    side = spec.spatial_compression
    return spec.time.latent_frames(size[0]) * (size[1] // side) * (size[2] // side)


def _most(layers: Sequence[Layer]) -> float:
    """Of the layer that needs most, with its input and what the module around it was given."""
    most, outside = 0.0, 0
    for layer in layers:
        given = _BYTES * layer.into * prod(layer.before)
        if layer.first:
            outside = given
        most = max(most, given + _NEEDED[layer.kind](layer) + (0 if layer.first else outside))
    return most


def _made(layer: Layer) -> int:
    return _BYTES * layer.out * prod(layer.after)


def _plain(layer: Layer) -> float:
    return _made(layer)


# ------------------------------------------------------------------------------------------------- Video DC-AE
def _normed(channels: int, size: Size) -> float:
    """A norm's result and what it takes, the values that it is given left out."""
    frames, values = size[0], channels * prod(size)
    ranges = min(frames, -(-values // NORM_VALUES))
    if ranges == 1:
        return _NORM_BYTES * values
    return _BYTES * values + _NORM_BYTES * channels * -(-frames // ranges) * size[1] * size[2]


def _dc_block(layer: Layer) -> float:
    # Both convolutions' results are there while the second one's is normed.
    return 2 * _made(layer) + _normed(layer.out, layer.after)


def _dc_attention(layer: Layer) -> float:
    return _ATTENTION_BYTES * layer.out * prod(layer.after)


def _dc_down(layer: Layer) -> float:
    given, made = _BYTES * layer.into * prod(layer.before), _made(layer)
    return max(2 * made + given, 3 * made)


def _dc_up(layer: Layer) -> float:
    enlarged, made = _BYTES * layer.into * prod(layer.after), _made(layer)
    return max(enlarged + made, 3 * made)


def _dc_project(layer: Layer) -> float:
    return _BYTES * max(layer.into, layer.out) * prod(layer.after) + 2 * _made(layer)


def _dc_head(layer: Layer) -> float:
    given = _BYTES * layer.into * prod(layer.before)
    return max(_normed(layer.into, layer.before), 2 * given, given + _made(layer))


# ------------------------------------------------------------------------------------------------- HunyuanVideo
def _convolved(channels: tuple[int, int], given: Size, after: Size, stride: int = 1) -> float:
    """A convolution's padded input and result."""
    into, out = channels
    values, frames = into * prod(given), after[0]
    ranges = -(-values // CONV_VALUES)
    each = frames if ranges == 1 else -(-frames // ranges)
    padded = _BYTES * into * ((each - 1) * stride + 3) * (given[1] + 2) * (given[2] + 2)
    result = _BYTES * out * prod(after)
    part = _BYTES * out * each * after[1] * after[2]
    # While a range is padded the one before it and its result are there; while it is convolved, both results.
    return result + padded + (0 if ranges == 1 else max(padded + part, 2 * part))


def _hunyuan_in(layer: Layer) -> float:
    return _convolved((layer.into, layer.out), layer.before, layer.after)


def _hunyuan_resnet(layer: Layer) -> float:
    given, made = _BYTES * layer.into * prod(layer.before), _made(layer)
    first = given + _convolved((layer.into, layer.out), layer.before, layer.after)
    second = made + _convolved((layer.out, layer.out), layer.after, layer.after)
    return max(first, second, 2 * made)


def _hunyuan_attention(layer: Layer) -> float:
    return _HEADS_BYTES * layer.out * prod(layer.after)


def _hunyuan_down(layer: Layer) -> float:
    return _convolved((layer.into, layer.out), layer.before, layer.after, layer.step)


def _hunyuan_up(layer: Layer) -> float:
    frames, rows, columns = layer.after
    enlarged = _BYTES * layer.into * (frames + layer.step - 1) * rows * columns
    return enlarged + _convolved((layer.into, layer.out), layer.after, layer.after)


def _hunyuan_head(layer: Layer) -> float:
    given = _BYTES * layer.into * prod(layer.before)
    return given + _convolved((layer.into, layer.out), layer.before, layer.after)


_NEEDED: Final[Mapping[str, Callable[[Layer], float]]] = {
    "dc_in": _plain,
    "dc_block": _dc_block,
    "dc_attention": _dc_attention,
    "dc_down": _dc_down,
    "dc_up": _dc_up,
    "dc_project_in": _dc_project,
    "dc_project_out": _dc_project,
    "dc_head": _dc_head,
    "hunyuan_in": _hunyuan_in,
    "hunyuan_resnet": _hunyuan_resnet,
    "hunyuan_attention": _hunyuan_attention,
    "hunyuan_down": _hunyuan_down,
    "hunyuan_up": _hunyuan_up,
    "hunyuan_head": _hunyuan_head,
    "hunyuan_quant": _plain,
}
"""Bytes of a layer beside its input, by kind."""
