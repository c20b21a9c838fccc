"""Tiled coding for both autoencoders: overlapping tiles in time and space whose results are cross-faded.

Memory then depends on the tile and not on the clip: beside its input and output a coding needs the activations of one
tile. Tiles are the published ones (time outside, each time tile cut in space; a tile reads its overlap again; the fade
is linear and runs against the neighbour that was itself faded already), because transformers were trained on latents
that were coded so. Two things differ, docs/decisions/0611 says why: the sizes of both sides always belong together, and
no frame is lost where the last tile of an autoencoder that is not causal has one latent frame.

Everything is planned in latent units. `samples` are pixels along rows and columns and frames along time.

Shape letters: B batch, C channels, T frames, H rows, W columns (of pixels or latents).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Coder = Callable[[Tensor], Tensor]
"""Encodes or decodes one tile, (B, C, T, H, W) to (B, C, T, H, W)."""
_TIME, _ROWS, _COLUMNS = 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Sizes of tiles. A clip no longer than a tile is coded at once; a picture is, if neither side is larger."""

    pixels: int | None
    """Rows and columns of a tile in pixels; None codes whole pictures."""
    frames: int | None
    """Frames of a tile; None codes all frames at once. A causal autoencoder reads one more."""
    overlap: float = 0.25
    """Share of a tile that it has in common with the next one."""


@dataclass(frozen=True)
class Axis:
    """How latents and samples belong together along one axis."""

    ratio: int
    """Samples per latent."""
    causal: bool = False
    """The first latent stands for a single sample."""

    def samples(self, latents: int) -> int:
        """Samples of so many latents from the start."""
        return self.ratio * (latents - self.causal) + self.causal

    def latents(self, samples: int) -> int:
        """Latents of so many samples from the start; at least one."""
        return max(1, (samples - self.causal) // self.ratio + self.causal)


@dataclass(frozen=True)
class Cut:
    """One tile along one axis, in latents."""

    start: int
    stop: int
    """The tile reads latents from start to before stop."""
    skip: int
    """First results that are dropped: they were read for context only."""
    keep: int
    """Results that are written, from `start + skip` on."""


@dataclass(frozen=True)
class Span:
    """Tile and overlap along one axis, in latents."""

    axis: Axis
    tile: int
    overlap: int

    @property
    def stride(self) -> int:
        """Latents from one tile to the next."""
        return self.tile - self.overlap

    def cut(self, index: int, total: int) -> Cut:
        """The tile of that index in a clip of `total` latents; only the last tiles depend on `total`."""
        start, lead = index * self.stride, int(self.axis.causal)
        stop = min(start + self.tile + lead, total)
        skip = lead if index else 0
        keep = min(self.stride + lead - skip, stop - start - skip)
        return Cut(start, stop, skip, keep)

    def cuts(self, total: int, decoding: bool, always: bool = False) -> list[Cut]:
        """Every tile of `total` latents; one if they fit into a tile, unless they are `always` cut at the stride."""
        if total <= self.tile and not always:
            return [Cut(0, total, 0, total)]
        found = [self.cut(index, total) for index in range(-(-total // self.stride))]
        last = found[-1]
        if decoding and not self.axis.causal and last.stop - last.start == 1:
            # One latent frame alone decodes to a picture, one frame instead of a whole group. With its predecessor it
            # decodes to both groups, and the first is dropped.
            found[-1] = Cut(last.start - 1, last.stop, 1, 1)
        return [cut for cut in found if cut.keep > 0]

    def grid(self, rows: int, columns: int) -> tuple[list[Cut], list[Cut]]:
        """Tiles of a picture of that many latents along both sides.

        Both sides are cut as soon as either is larger than a tile: the published coders ask for the picture, not for
        the side, so that a side between stride and tile is cut too.
        """
        cut = max(rows, columns) > self.tile
        return self.cuts(rows, decoding=False, always=cut), self.cuts(columns, decoding=False, always=cut)

    def read(self, cut: Cut, encoding: bool) -> slice:
        """What the tile reads."""
        if not encoding:
            return slice(cut.start, cut.stop)
        start = self.axis.ratio * cut.start
        return slice(start, start + self.axis.samples(cut.stop - cut.start))

    def kept(self, cut: Cut, encoding: bool) -> slice:
        """The results of the tile that are written, counted from its first result that is not dropped."""
        if encoding:
            return slice(0, cut.keep)
        start = cut.start + cut.skip
        return slice(0, self.axis.samples(start + cut.keep) - (self.axis.samples(start) if start else 0))

    def dropped(self, cut: Cut, encoding: bool) -> int:
        """Results at the front of the tile that are dropped."""
        return cut.skip if encoding or not cut.skip else self.axis.samples(cut.skip)

    def length(self, cuts: list[Cut], encoding: bool) -> int:
        """Results of all tiles together."""
        return sum(self.kept(cut, encoding).stop for cut in cuts)

    def fade(self, encoding: bool) -> int:
        """Results over which neighbours are cross-faded."""
        return self.overlap if encoding else self.overlap * self.axis.ratio


class TileCoder:
    """Codes clips of one autoencoder in tiles.

    Args:
        unit: pixels per latent row and column.
        time: how frames and latent frames belong together.
        tiling: sizes of tiles; None codes everything at once.

    Raises:
        ValueError: a size is no multiple of the compression, or the overlap is no whole number of latents.
    """

    def __init__(self, unit: int, time: Axis, tiling: Tiling | None) -> None:
        self.tiling = tiling
        pixels, frames = (None, None) if tiling is None else (tiling.pixels, tiling.frames)
        overlap = 0.0 if tiling is None else tiling.overlap
        self._space = None if pixels is None else _span("pixels", Axis(unit), pixels, overlap, least=1)
        self._time = None if frames is None else _span("frames", time, frames, overlap, least=1 if time.causal else 2)

    def encode(self, code: Coder, x_BCTHW: Tensor) -> Tensor:
        """Pixels to latents, tile by tile; a batch item by item."""
        return self._each(lambda one: self._in_time(code, one, encoding=True), x_BCTHW)

    def decode(self, code: Coder, z_BCTHW: Tensor) -> Tensor:
        """Latents to pixels, tile by tile; a batch item by item."""
        return self._each(lambda one: self._in_time(code, one, encoding=False), z_BCTHW)

    def stream(self, code: Coder, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents of a clip that arrives in pieces, each as soon as no later frame can change it.

        The results, put together, are those of `encode` for the whole clip, bit for bit, and no more than a tile and a
        chunk are held.

        Args:
            code: encodes one tile.
            chunks: pixels (B, C, n, H, W) of any number of frames each, in order.

        Raises:
            ValueError: there is no temporal tile, or no frame.
        """
        if self._time is None:
            raise ValueError("tiling.frames is not set: without a temporal tile a clip can only be encoded whole")
        fade = _Fade(_TIME, self._time.fade(encoding=True))
        window = _Window(iter(chunks))
        for cut in _streamed(self._time, window):
            piece = window.read(self._time.read(cut, encoding=True))
            yield self._time_tile(code, piece, cut, fade, encoding=True)

    def _each(self, code: Coder, x_BCTHW: Tensor) -> Tensor:
        if self.tiling is None or len(x_BCTHW) == 1:
            return code(x_BCTHW)
        return _joined((code(x_BCTHW[item : item + 1]) for item in range(len(x_BCTHW))), len(x_BCTHW), 0)

    def _in_time(self, code: Coder, x_BCTHW: Tensor, encoding: bool) -> Tensor:
        if self._time is None:
            return self._in_space(code, x_BCTHW, encoding)
        length = x_BCTHW.shape[_TIME]
        cuts = self._time.cuts(self._time.axis.latents(length) if encoding else length, decoding=not encoding)
        if len(cuts) == 1:
            return self._in_space(code, x_BCTHW, encoding)
        fade, time = _Fade(_TIME, self._time.fade(encoding)), self._time
        pieces = (self._time_tile(code, x_BCTHW[:, :, time.read(cut, encoding)], cut, fade, encoding) for cut in cuts)
        return _joined(pieces, time.length(cuts, encoding), _TIME)

    def _time_tile(self, code: Coder, piece_BCTHW: Tensor, cut: Cut, fade: _Fade, encoding: bool) -> Tensor:
        assert self._time is not None
        out = self._in_space(code, piece_BCTHW, encoding)[:, :, self._time.dropped(cut, encoding) :]
        return fade(out)[:, :, self._time.kept(cut, encoding)]

    def _in_space(self, code: Coder, x_BCTHW: Tensor, encoding: bool) -> Tensor:
        if self._space is None:
            return code(x_BCTHW)
        sizes = x_BCTHW.shape[_ROWS:]
        rows, columns = self._space.grid(*(self._space.axis.latents(n) if encoding else n for n in sizes))
        if len(rows) == len(columns) == 1:
            return code(x_BCTHW)
        above = [_Fade(_ROWS, self._space.fade(encoding)) for _ in columns]
        strips = (self._row(code, x_BCTHW, row, columns, above, encoding) for row in rows)
        return _joined(strips, self._space.length(rows, encoding), _ROWS)

    def _row(
        self, code: Coder, x_BCTHW: Tensor, row: Cut, columns: list[Cut], above: list[_Fade], encoding: bool
    ) -> Tensor:
        assert self._space is not None
        space, left = self._space, _Fade(_COLUMNS, self._space.fade(encoding))
        strip = x_BCTHW[..., space.read(row, encoding), :]

        def tile(column: Cut, over: _Fade) -> Tensor:
            faded = left(over.apply(code(strip[..., space.read(column, encoding)])))
            over.remember(faded)
            return faded[..., space.kept(row, encoding), space.kept(column, encoding)]

        tiles = (tile(column, over) for column, over in zip(columns, above, strict=True))
        return _joined(tiles, space.length(columns, encoding), _COLUMNS)


def _joined(pieces: Iterable[Tensor], length: int, axis: int) -> Tensor:
    """Pieces along an axis, each copied to its place and let go before the next one is made."""
    out, at = None, 0
    for piece in pieces:
        if out is None:
            out = piece.new_empty([length if index == axis else size for index, size in enumerate(piece.shape)])
        out.narrow(axis, at, piece.shape[axis]).copy_(piece)
        at += piece.shape[axis]
    assert out is not None
    assert at == length, f"tiles cover {at} of {length} along axis {axis}"
    return out


class _Fade:
    """Cross-fades each tile with the end of the one before it along one axis."""

    def __init__(self, axis: int, extent: int) -> None:
        self._axis, self._extent = axis, extent
        self._end: Tensor | None = None

    def __call__(self, tile: Tensor) -> Tensor:
        out = self.apply(tile)
        self.remember(out)
        return out

    def apply(self, tile: Tensor) -> Tensor:
        """The tile, its start faded in; the new tile has weight k / extent in its place k."""
        if self._end is None:
            return tile
        extent = min(self._end.shape[self._axis], tile.shape[self._axis])
        if extent == 0:
            return tile
        shape = [extent if axis == self._axis else 1 for axis in range(tile.dim())]
        weight = (torch.arange(extent, device=tile.device) / extent).to(tile.dtype).view(shape)
        before = self._end.narrow(self._axis, self._end.shape[self._axis] - extent, extent)
        head = torch.lerp(before, tile.narrow(self._axis, 0, extent), weight)
        rest = tile.narrow(self._axis, extent, tile.shape[self._axis] - extent)
        return torch.cat((head, rest), dim=self._axis)

    def remember(self, tile: Tensor) -> None:
        """Hold the end of a tile for the next one, as a copy that does not keep the tile alive."""
        extent = min(self._extent, tile.shape[self._axis])
        self._end = tile.narrow(self._axis, tile.shape[self._axis] - extent, extent).clone()


class _Window:
    """Frames of a stream from the first that is still needed."""

    def __init__(self, chunks: Iterator[Tensor]) -> None:
        self._chunks = chunks
        self._held: Tensor | None = None
        self._first = 0

    @property
    def stop(self) -> int:
        """Frames that have arrived."""
        return self._first + (0 if self._held is None else self._held.shape[_TIME])

    def reach(self, frames: int) -> bool:
        """Take chunks until so many frames have arrived; False if the stream ends before."""
        while self.stop < frames:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._held = chunk if self._held is None else torch.cat((self._held, chunk), dim=_TIME)
        return True

    def read(self, frames: slice) -> Tensor:
        """Those frames; earlier ones are let go."""
        if self._held is None:
            raise ValueError("a stream of no frames cannot be encoded")
        self._held = self._held[:, :, frames.start - self._first :]
        self._first = frames.start
        return self._held[:, :, : frames.stop - frames.start]


def _streamed(time: Span, window: _Window) -> Iterator[Cut]:
    """Tiles in order; one is given once a later frame has arrived, so that it cannot be the last, or at the end."""
    index = 0
    while True:
        unbounded = time.cut(index, total=(index + 2) * (time.tile + 1))
        if not window.reach(time.read(unbounded, encoding=True).stop + 1):
            break
        yield unbounded
        index += 1
    total, axis = window.stop, time.axis
    if axis.samples(axis.latents(total)) != total and (axis.causal or total > axis.ratio // 2):
        allowed = f"1 + {axis.ratio}k" if axis.causal else f"1, {axis.ratio // 2} or a multiple of {axis.ratio}"
        raise ValueError(f"a stream of {total} frames cannot be encoded: frames must be {allowed}")
    yield from time.cuts(axis.latents(total), decoding=False)[index:]


def _span(name: str, axis: Axis, size: int, overlap: float, least: int) -> Span:
    if size % axis.ratio or size < least * axis.ratio:
        raise ValueError(
            f"tiling.{name}: {size}; it must be a multiple of {axis.ratio} from {least * axis.ratio} on, since tiles "
            "are cut between latents"
        )
    tile = size // axis.ratio
    common = overlap * tile
    if not 0 <= overlap < 1 or abs(common - round(common)) > 1e-6:
        raise ValueError(
            f"tiling.overlap: {overlap}; with {name} {size} the overlap would be {common:g} of {tile} latents: it must "
            "be a whole number from 0 and below the tile"
        )
    return Span(axis, tile, round(common))
