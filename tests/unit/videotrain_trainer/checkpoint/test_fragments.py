from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pieces import even_share

from videotrain_trainer.checkpoint.fragments import ByteRange, StoredPieces, block_ranges, coverage_problems
from videotrain_trainer.sharded_state import Piece, numel, pack, packed_length

shapes = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    min_size=1,
    max_size=6,
)


def values_of(pieces, shapes):
    """Each element is its place in the whole model."""
    begins, begin = {}, 0
    for name, shape in shapes.items():
        begins[name] = begin
        begin += numel(shape)
    return [begins[piece.parameter] + piece.start + i for piece in pieces for i in range(piece.length)]


@st.composite
def ragged_worlds(draw):
    """Shapes, and files that hold all elements in random pieces and order, as ZeRO stage 3 or a bug might."""
    found = draw(shapes)
    ranks = draw(st.integers(1, 4))
    spans = [[] for _ in range(ranks)]
    for name, shape in found.items():
        cuts = sorted(draw(st.lists(st.integers(0, numel(shape)), max_size=3)))
        edges = [0, *cuts, numel(shape)]
        for low, high in pairwise(edges):
            spans[draw(st.integers(0, ranks - 1))].append((name, low, high - low))
    return found, [pack(draw(st.permutations(rank))) for rank in spans]


@given(ragged_worlds(), st.integers(1, 5))
def test_every_world_can_be_filled_from_what_any_other_world_stored(stored_world, ranks):
    found, stored = stored_world
    vectors = [values_of(pieces, found) for pieces in stored]
    for rank in range(ranks):
        wanted = even_share(found, ranks, rank)
        target = [None] * packed_length(wanted)
        for copy in StoredPieces(stored).copies(wanted):
            target[copy.target : copy.target + copy.length] = vectors[copy.file][
                copy.source : copy.source + copy.length
            ]
        assert target == values_of(wanted, found)


@given(shapes, st.integers(1, 7))
def test_even_shares_hold_every_element_once_and_differ_little(found, ranks):
    stored = [even_share(found, ranks, rank) for rank in range(ranks)]
    total = sum(numel(shape) for shape in found.values())
    assert coverage_problems(found, stored) == []
    assert all(packed_length(pieces) <= -(-total // ranks) for pieces in stored)


def test_the_same_world_reads_its_own_file_in_one_run():
    found = {"a": (3, 4), "b": (5,), "c": (2, 2)}
    stored = [even_share(found, 2, rank) for rank in range(2)]
    copies = StoredPieces(stored).copies(stored[1])
    assert [(copy.file, copy.source, copy.target, copy.length) for copy in copies] == [(1, 0, 0, 10)]


@given(ragged_worlds(), st.data())
def test_a_lost_or_doubled_piece_is_noticed(stored_world, data):
    found, stored = stored_world
    rank = data.draw(st.integers(0, len(stored) - 1))
    if not stored[rank]:
        return
    changed = list(stored)
    changed[rank] = stored[rank][1:] if data.draw(st.booleans()) else [stored[rank][0], *stored[rank]]
    assert coverage_problems(found, changed) != []


def test_an_unknown_parameter_and_a_missing_element_are_named():
    with pytest.raises(ValueError, match="b: 0 of the wanted 2 elements are stored"):
        StoredPieces([[Piece("a", 0, 2, 0)]]).copies([Piece("b", 0, 2, 0)])
    assert coverage_problems({"a": (3,)}, [[Piece("a", 0, 2, 0), Piece("x", 0, 1, 2)]]) == [
        "unknown parameter x",
        "a: 2 of 3 elements",
    ]


@given(
    st.integers(1, 2000),
    st.integers(1, 64),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 1999), st.integers(1, 300)), max_size=8),
)
def test_requested_ranges_are_whole_blocks_that_cover_what_is_wanted_once(size, block, longest, wanted):
    spans = [ByteRange(low, min(low + length, size)) for low, length in wanted if low < size]
    ranges = block_ranges(spans, size, block, longest * block)
    requested = [byte for found in ranges for byte in range(found.start, found.stop)]
    needed = {byte // block for span in spans for byte in range(span.start, span.stop)}
    assert len(requested) == len(set(requested))
    assert {byte // block for byte in requested} == needed
    assert all(found.start % block == 0 and found.stop - found.start <= longest * block for found in ranges)
    assert all(found.stop % block == 0 or found.stop == size for found in ranges)
