from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.curation.pieces import cut_shot
from videotrain_trainer.curation.source import stem_words


@given(
    first=st.integers(0, 50),
    frames=st.integers(1, 2000),
    fps=st.sampled_from([16.0, 24.0, 29.97]),
    longest=st.sampled_from([2.0, 5.0, 8.0]),
    ratio=st.floats(0.1, 1.0),
)
def test_pieces_fill_the_shot_and_none_is_too_long(first, frames, fps, longest, ratio):
    shortest = longest * ratio
    pieces = cut_shot(first, first + frames, fps, shortest, longest)
    assert pieces[0][0] == first
    assert pieces[-1][1] == first + frames
    assert all(left[1] == right[0] for left, right in pairwise(pieces))
    assert all(0 < end - start <= longest * fps + 0.5 for start, end in pieces)
    if ratio <= 0.5 and frames >= shortest * fps:
        assert all(end - start >= shortest * fps - 1.5 for start, end in pieces)


def test_a_shot_slightly_too_long_is_halved_rather_than_cut_to_a_useless_rest():
    assert cut_shot(0, 90, 10.0, 2.0, 8.0) == [(0, 45), (45, 90)]
    assert cut_shot(0, 90, 10.0, 5.0, 8.0) == [(0, 80), (80, 90)]


def test_a_caption_of_last_resort_is_the_words_of_the_stem():
    assert stem_words("red-car_02.final") == "red car 02 final"
    assert stem_words("--") == "--"
