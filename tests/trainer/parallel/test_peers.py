"""Ranks that talk over gloo, and one among them that says what no honest rank says."""

from __future__ import annotations

import pytest
from support.peer_worlds import steps_of, what_they_said

SIZES = pytest.mark.parametrize("size", [2, 4])


@SIZES
def test_all_ranks_hear_the_first(tmp_path, size):
    assert what_they_said(tmp_path, size, "from_first") == [repr({"é": [1, 2**40]})] * size


@SIZES
def test_the_first_hears_all_ranks_and_nobody_else_does(tmp_path, size):
    first, *others = what_they_said(tmp_path, size, "to_first")
    assert first == repr([steps_of(rank) for rank in range(size)])
    assert others == ["[]"] * (size - 1)


@SIZES
@pytest.mark.parametrize("lie", ["pickle", "text"])
def test_what_the_first_should_not_say_is_refused_by_all_and_runs_nowhere(tmp_path, size, lie):
    _, *others = what_they_said(tmp_path, size, "from_first", liar=0, lie=lie)
    assert all(said.startswith("refused: rank 0 sent ") for said in others), others
    assert not (tmp_path / "ran").exists()


@SIZES
@pytest.mark.parametrize("lie", ["pickle", "text"])
def test_what_another_rank_should_not_say_is_refused_with_its_number_and_runs_nowhere(tmp_path, size, lie):
    said = what_they_said(tmp_path, size, "to_first", liar=size - 1, lie=lie)
    assert said[0].startswith(f"refused: rank {size - 1} sent ")
    assert said[1:] == ["[]"] * (size - 2) + ["lied"]
    assert not (tmp_path / "ran").exists()


@SIZES
def test_an_absurd_length_is_refused_by_all_before_memory_is_taken(tmp_path, size):
    said = what_they_said(tmp_path, size, "to_first", liar=size - 1, lie="length")
    refusal = f"refused: rank {size - 1} announces a message of {1 << 50} bytes"
    assert all(line.startswith(refusal) for line in said[:-1]), said
    (tmp_path / "first").mkdir()
    _, *others = what_they_said(tmp_path / "first", size, "from_first", liar=0, lie="length")
    assert all(line.startswith("refused: rank 0 announces ") for line in others), others


def test_a_negative_length_is_refused_by_the_first(tmp_path):
    said = what_they_said(tmp_path, 4, "to_first", liar=2, lie="negative")
    assert said[0].startswith("refused: rank 2 announces a message of -5 bytes")


def test_a_message_shorter_than_it_was_announced_ends_in_an_error_not_in_a_wait(tmp_path):
    said = what_they_said(tmp_path, 2, "to_first", liar=1, lie="short")
    assert "Error: " in said[0]
