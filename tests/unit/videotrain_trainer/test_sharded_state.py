"""Packed vectors and their parts."""

from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.sharded_state import in_parts, pack, packed_length

SPANS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 40)), max_size=8)


@given(SPANS, st.integers(1, 30))
def test_parts_follow_each_other_and_make_the_whole(spans, most):
    pieces, end, found = pack(spans), 0, []
    for start, part in in_parts(pieces, most):
        assert start == end
        assert 0 < packed_length(part) <= most
        assert [piece.offset for piece in part] == [piece.offset for piece in pack_again(part)]
        end += packed_length(part)
        found += [(piece.parameter, piece.start + i) for piece in part for i in range(piece.length)]
    assert found == [(piece.parameter, piece.start + i) for piece in pieces for i in range(piece.length)]


def pack_again(part):
    return pack((piece.parameter, piece.start, piece.length) for piece in part)
