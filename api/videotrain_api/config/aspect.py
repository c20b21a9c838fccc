"""Resolution classes and aspect ratios: which height and width the clips of a bucket have.

A class such as `256px` fixes the area (256 x 256), a name such as `16:9` the shape. Both sides are multiples of the
grid (autoencoder compression times patch size), so the tables differ per model. Rule and tables: Open-Sora 2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isqrt
from types import MappingProxyType
from typing import Final

Shape = tuple[int, int]
"""(height, width), pixels."""

RESOLUTIONS: Final = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Square sides of the known classes, pixels; published recipes use 256, 768 and 1024, CPUs the small ones."""
RESOLUTION_NAMES: Final = tuple(f"{side}px" for side in RESOLUTIONS)

# Width : height in hundredths. The order matters: of two names with one shape the first is kept.
_NOMINAL: Final = MappingProxyType(
    {
        "2.39:1": (239, 100),
        "2:1": (2, 1),
        "16:9": (16, 9),
        "1.85:1": (185, 100),
        "9:16": (9, 16),
        "5:8": (5, 8),
        "3:2": (3, 2),
        "4:3": (4, 3),
        "1:1": (1, 1),
    }
)
_SQUARE: Final = "1:1"
_MOST_DISTORTION: Final = 1.5


def mirrored(name: str) -> str:
    """The aspect ratio with its sides exchanged: `16:9` becomes `9:16`."""
    width, height = name.split(":")
    return f"{height}:{width}"


ASPECT_NAMES: Final = tuple(dict.fromkeys([*_NOMINAL, *(mirrored(name) for name in _NOMINAL)]))
"""All width:height names."""


def side_of(resolution: str) -> int:
    """Square side of a class in pixels.

    Raises:
        ValueError: the class is not known.
    """
    if resolution not in RESOLUTION_NAMES:
        raise ValueError(f"unknown resolution {resolution!r}; allowed: {', '.join(RESOLUTION_NAMES)}")
    return int(resolution.removesuffix("px"))


def shapes(resolution: str, grid: int, names: Sequence[str] | None = None) -> dict[str, Shape]:
    """Training shapes of a class as {name: (height, width)}.

    With `names` the table holds these, otherwise all names; one shape appears once except under mirrored names.

    Raises:
        ValueError: a name is not known, or the side of the class is no multiple of the grid.
    """
    if names is None:
        return dict(_full_table(resolution, grid))
    table: dict[str, Shape] = {}
    for name in names:
        shape = shape_of(resolution, name, grid)
        if shape not in table.values():
            table[name] = shape
    return table


@cache
def shape_of(resolution: str, name: str, grid: int) -> Shape:
    """Training shape of one name: of the rounded-down shape and its four neighbours the one nearest to the area.

    Raises:
        ValueError: the name is not known, or the side of the class is no multiple of the grid.
    """
    if name not in _NOMINAL:
        height, width = shape_of(resolution, _mirror_of(name), grid)
        return width, height
    height, width = _rounded_down(resolution, name, grid)
    around = [(height, width), (height - grid, width), (height + grid, width), (height, width - grid)]
    around.append((height, width + grid))
    area = side_of(resolution) ** 2
    return min((s for s in around if min(s) > 0), key=lambda shape: abs(shape[0] * shape[1] - area))


@cache
def _full_table(resolution: str, grid: int) -> MappingProxyType[str, Shape]:
    kept = {_SQUARE: shape_of(resolution, _SQUARE, grid)}  # first, or another name takes the square at tiny sizes
    for name in _NOMINAL:
        shape = shape_of(resolution, name, grid)
        if shape not in kept.values() and _distortion(name, shape) <= _MOST_DISTORTION:
            kept[name] = shape
    ordered = {name: kept[name] for name in _NOMINAL if name in kept}
    return MappingProxyType(_with_mirrors(ordered))


def _with_mirrors(table: dict[str, Shape]) -> dict[str, Shape]:
    mirrors = {mirrored(name): (width, height) for name, (height, width) in table.items()}
    return table | {name: shape for name, shape in mirrors.items() if name not in table}


def _mirror_of(name: str) -> str:
    if name not in ASPECT_NAMES:
        raise ValueError(f"unknown aspect ratio {name!r}; allowed: {', '.join(ASPECT_NAMES)}")
    return mirrored(name)


def _rounded_down(resolution: str, name: str, grid: int) -> Shape:
    side = side_of(resolution)
    if side % grid:
        raise ValueError(f"resolution {resolution!r} is no multiple of the grid of {grid} pixels")
    wide, high = _NOMINAL[name]
    width = max(1, isqrt(side * side * wide // (high * grid * grid))) * grid
    height = max(1, side * side // (width * grid)) * grid
    return height, width


def _distortion(name: str, shape: Shape) -> float:
    wide, high = _NOMINAL[name]
    found = (shape[1] * high) / (shape[0] * wide)
    return max(found, 1 / found)
