"""What to read from stored files to hold other elements than their writers did: arithmetic on pieces and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from videotrain_trainer.sharded_state import Piece, numel

ELEMENT_BYTES = 4
"""Everything in a checkpoint is float32."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Elements to take from the packed vector of a stored file into the packed vector of this rank."""

    file: int
    source: int
    """First element in the file's vector."""
    target: int
    """First element in this rank's vector."""
    length: int


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of one object, from `start` up to but without `stop`."""

    start: int
    stop: int


def coverage_problems(shapes: Mapping[str, Sequence[int]], stored: Sequence[Sequence[Piece]]) -> list[str]:
    """What is missing, twice or unknown in a set of files; empty if they hold every element exactly once."""
    spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for pieces in stored:
        for piece in pieces:
            spans[piece.parameter].append((piece.start, piece.start + piece.length))
    problems = [f"unknown parameter {name}" for name in spans if name not in shapes]
    for name, shape in shapes.items():
        position = 0
        for start, stop in sorted(spans.get(name, [])):
            if start != position:
                problems.append(f"{name}: {'gap' if start > position else 'overlap'} at element {min(start, position)}")
                break
            position = stop
        else:
            if position != numel(shape):
                problems.append(f"{name}: {position} of {numel(shape)} elements")
    return problems


class StoredPieces:
    """What lies in the vectors of stored files.

    Args:
        stored: pieces of every file.
    """

    def __init__(self, stored: Iterable[Sequence[Piece]]) -> None:
        self._held: defaultdict[str, list[tuple[int, Piece]]] = defaultdict(list)
        for number, pieces in enumerate(stored):
            for piece in pieces:
                self._held[piece.parameter].append((number, piece))

    def copies(self, wanted: Sequence[Piece]) -> list[Copy]:
        """How to fill a packed vector from them, by file and position, runs merged.

        Args:
            wanted: pieces of a rank, in any world.

        Raises:
            ValueError: some wanted element is in no file.
        """
        copies = [copy for piece in wanted for copy in _copies_of(piece, self._held.get(piece.parameter, []))]
        return _merged(sorted(copies, key=lambda copy: (copy.file, copy.source)))


def _copies_of(wanted: Piece, held: Sequence[tuple[int, Piece]]) -> list[Copy]:
    copies, found = [], 0
    for number, piece in held:
        start = max(wanted.start, piece.start)
        length = min(wanted.start + wanted.length, piece.start + piece.length) - start
        if length > 0:
            source, target = piece.offset + start - piece.start, wanted.offset + start - wanted.start
            copies.append(Copy(number, source, target, length))
            found += length
    if found != wanted.length:
        raise ValueError(f"{wanted.parameter}: {found} of the wanted {wanted.length} elements are stored")
    return copies


def _merged(copies: Sequence[Copy]) -> list[Copy]:
    """Neighbours in the file that are neighbours in the target too become one."""
    out: list[Copy] = []
    for copy in copies:
        last = out[-1] if out else None
        if (
            last is not None
            and last.file == copy.file
            and last.source + last.length == copy.source
            and last.target + last.length == copy.target
        ):
            out[-1] = Copy(last.file, last.source, last.target, last.length + copy.length)
        else:
            out.append(copy)
    return out


def block_ranges(spans: Iterable[ByteRange], size: int, block: int, longest: int) -> list[ByteRange]:
    """Ranges to request so that all `spans` are covered by whole blocks, whose checksums are known.

    Args:
        spans: bytes that are wanted; in any order, may overlap.
        size: bytes of the object; its last block may be short.
        block: bytes of a block.
        longest: longest range to request at once, bytes; a multiple of `block`.
    """
    merged: list[list[int]] = []
    for span in sorted(spans, key=lambda found: found.start):
        start, stop = span.start // block * block, min(-(-span.stop // block) * block, size)
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop])
    return [ByteRange(low, min(low + longest, stop)) for start, stop in merged for low in range(start, stop, longest)]
