"""Parts of weights: each rank reads the elements that it holds, and no others.

A fragment is a run of elements of one flattened parameter. In most layouts a run of our elements is some rows of the
file's tensors, so it costs about its own bytes; where it is not, the tensors that it is made of are read whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from videotrain_trainer.checksums import checksum
from videotrain_trainer.networks.layout_rules import Mapped, Shapes, Side, unchanged
from videotrain_trainer.networks.weights.files import Weights
from videotrain_trainer.sharded_state import numel

GAP_BYTES: Final = 1 << 15
"""So many bytes between two wanted runs are read with them: they cost less than a request."""


class Fragments(Protocol):
    """Where the values of a model's parameters come from. Safe to use from any thread."""

    def read(self, name: str, start: int, length: int) -> Tensor:
        """(length,): elements of the flattened parameter from `start` on, on the CPU, in any data type."""

    def unverified(self) -> list[Unverified]:
        """What was read since the last call of tensors whose checksum only all ranks together can compute."""

    def checksum_of(self, name: str) -> str:
        """The checksum of a tensor that `unverified` names."""


class Unverified(NamedTuple):
    """A part of a stored tensor that carries a checksum only as a whole."""

    parameter: str
    offset: int
    """First byte within the tensor."""
    length: int
    """Bytes."""
    crc32c: str
    """Of what was read."""


def whole(fragments: Fragments, name: str, shape: tuple[int, ...]) -> Tensor:
    """All of one parameter."""
    return fragments.read(name, 0, numel(shape)).reshape(shape)


class StoredFragments:
    """Parameters of a model from a weight file of any layout.

    Args:
        weights: open; nothing of them is held.
        sides: how our tensors are made of the file's.
        shapes: of our tensors.
    """

    def __init__(self, weights: Weights, sides: list[Side], shapes: Shapes) -> None:
        self._weights, self._shapes = weights, shapes
        self._sides = {name: side for side in sides for name in side.outputs}
        self._whole, self._lock = Mapped(sides, weights.read), threading.Lock()
        self._unverified: list[Unverified] = []

    def read(self, name: str, start: int, length: int) -> Tensor:
        """See Fragments."""
        side = self._sides[name]
        sealed = any(self._weights.files[source].checksums for source in side.inputs)
        if len(side.inputs) == 1 and side.make is unchanged:
            source = side.inputs[0]
            if length == numel(self._shapes[name]):
                return self._weights.read(source).reshape(-1)
            values = self._weights.files[source].read_range(source, start, length)
            return self._noted(name, start, values) if sealed else values
        if side.by_rows and not sealed:
            return self._rows(name, side, start, length)
        with self._lock:  # the tensors of one group are held, for the next fragment is often of the same
            return self._whole(name).reshape(-1)[start : start + length].clone()

    def unverified(self) -> list[Unverified]:
        """See Fragments."""
        with self._lock:
            found, self._unverified = self._unverified, []
        return found

    def checksum_of(self, name: str) -> str:
        """See Fragments."""
        source = self._sides[name].inputs[0]
        return self._weights.files[source].checksums[source]

    def _noted(self, name: str, start: int, values: Tensor) -> Tensor:
        size, data = values.element_size(), values.view(torch.uint8).numpy().data
        part = Unverified(name, start * size, len(data), checksum(data))
        with self._lock:
            self._unverified.append(part)
        return values

    def _rows(self, name: str, side: Side, start: int, length: int) -> Tensor:
        """The rows that hold the elements, from wherever they lie, cut to the elements."""
        shape = self._shapes[name]
        width = numel(shape[1:])
        first, last = start // width, -(-(start + length) // width)
        counts = [self._weights.files[source].infos[source].shape[0] for source in side.inputs]
        origins = side.origins(name, counts)[first:last]
        out: Tensor | None = None
        base = 0
        for source, count in zip(side.inputs, counts, strict=True):
            here = (origins >= base) & (origins < base + count)
            file = self._weights.files[source]
            item = file.infos[source].dtype.itemsize
            for low, high in _runs(origins[here] - base, max(1, GAP_BYTES // (width * item))):
                rows = file.read_range(source, low * width, (high - low) * width).view(high - low, width)
                out = torch.empty(last - first, width, dtype=rows.dtype) if out is None else out
                wanted = (origins >= base + low) & (origins < base + high)
                out[wanted] = rows[origins[wanted] - base - low].to(out.dtype)
            base += count
        assert out is not None, "a range that is not empty has rows"
        return out.view(-1)[start - first * width :][:length].clone()


def _runs(rows: Tensor, gap: int) -> Iterator[tuple[int, int]]:
    """Ranges that hold all rows; two that lie no more than `gap` rows apart are one."""
    ordered = rows.sort().values
    if not len(ordered):
        return
    cuts = (ordered.diff() > gap + 1).nonzero().view(-1).tolist()
    lows = [0, *(cut + 1 for cut in cuts)]
    for low, high in zip(lows, [*cuts, len(ordered) - 1], strict=True):
        yield int(ordered[low]), int(ordered[high]) + 1


@dataclass(frozen=True)
class Chosen:
    """Fragments of one source or another, by parameter.

    Args:
        by_name: the sources of some parameters.
        other: the source of all others.
    """

    by_name: Mapping[str, Fragments]
    other: Fragments

    def read(self, name: str, start: int, length: int) -> Tensor:
        """See Fragments."""
        return self.by_name.get(name, self.other).read(name, start, length)

    def unverified(self) -> list[Unverified]:
        """See Fragments."""
        sources = {id(source): source for source in (*self.by_name.values(), self.other)}
        return [found for source in sources.values() for found in source.unverified()]

    def checksum_of(self, name: str) -> str:
        """See Fragments."""
        return self.by_name.get(name, self.other).checksum_of(name)


class Computed:
    """Fragments that are computed and not read, so that nothing is to be verified.

    Args:
        make: (name, start, length) to elements.
    """

    def __init__(self, make: Make) -> None:
        self.read = make

    def unverified(self) -> list[Unverified]:
        """See Fragments."""
        return []

    def checksum_of(self, name: str) -> str:
        """See Fragments."""
        raise KeyError(name)


class Make(Protocol):
    """Computes elements of a flattened parameter."""

    def __call__(self, name: str, start: int, length: int, /) -> Tensor:
        """(length,): the elements from `start` on."""
