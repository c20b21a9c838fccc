"""Ranks that share sequences learn what a rank with whole sequences learns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.context_worlds import HEAD, Case, compare_all, compile_alone, exchanges_of_a_block, run_ranks

from videotrain_api.resource.stages import ulysses_degree
from videotrain_trainer.diffusion.conditioning import KINDS
from videotrain_trainer.parallel.context import members, part_lengths

pytestmark = pytest.mark.numeric

EXACT = 1e-12
"""Relative, of sums of some thousand float64 products, each rounded by 1e-16, in another order."""
TWO = [
    Case(degree=2, skip_given=True),
    Case(degree=2, text=5, latents=(2, 1, 1), condition=False, layout="interleaved"),
    Case(degree=2, lora=True, text=4, latents=(4, 1, 2)),
    Case(degree=2, heads=3, gpus_per_node=2, latents=(3, 1, 3)),
]
FOUR = [
    Case(degree=4, skip_given=True),
    Case(degree=2, text=7, latents=(5, 1, 3), micro_batches=3),
    Case(degree=4, text=1, latents=(1, 1, 2), condition=False, micro_batches=1),
    Case(degree=4, gpus_per_node=2, lora=True, base="int8", latents=(9, 1, 1), micro_batches=2),
    Case(degree=4, heads=3, text=3, latents=(7, 1, 1), micro_batches=1),
]


@given(st.integers(0, 5000), st.integers(1, 64))
def test_parts_differ_by_one_token_at_most_and_leave_none_out(tokens, parts):
    lengths = part_lengths(tokens, parts)
    assert (sum(lengths), len(lengths)) == (tokens, parts)
    assert max(lengths) - min(lengths) <= 1


@given(
    st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 4, 8, 16, 24, 32]), st.integers(1, 32), st.integers(0, 95)
)
def test_heads_are_split_within_a_node_and_every_other_rank_has_a_block_of_the_same_heads(gpus, degree, heads, rank):
    within = ulysses_degree(degree, gpus, heads)
    everyone, neighbours, others = members(rank, degree, within)
    assert degree % within == heads % within == 0
    assert (len(everyone), len(neighbours), len(others)) == (degree, within, degree // within)
    assert set(neighbours) | set(others) <= set(everyone)
    assert set(neighbours) & set(others) == {rank}
    assert len({other // gpus for other in neighbours}) == 1
    for other in everyone:
        assert members(other, degree, within)[0] == everyone
    assert sorted(r for other in others for r in members(other, degree, within)[1]) == list(everyone)


def test_sixteen_gpus_of_two_nodes_split_24_heads_by_eight_and_the_sequence_by_two():
    assert ulysses_degree(16, 8, 24) == 8
    assert members(27, 16, 8) == (range(16, 32), range(24, 32), range(19, 32, 8))


@pytest.mark.parametrize(("size", "cases"), [(2, TWO), (4, FOUR)])
def test_gradients_are_those_of_whole_sequences(tmp_path, size, cases):
    for found in run_ranks(tmp_path, size, compare_all, cases):
        for case, comparison in zip(cases, found, strict=True):
            assert comparison.gradient < EXACT, case
            assert comparison.loss < EXACT, case
        assert found[0].kinds == set(KINDS)


def test_a_block_sends_its_tokens_once_in_each_direction(tmp_path):
    case = Case(degree=2)
    tokens = 80 // case.degree * case.heads * HEAD * 4
    to_others = (case.degree - 1) / case.degree
    for found in run_ranks(tmp_path, case.degree, exchanges_of_a_block, case):
        for forward, backward in found.values():
            assert forward == [3 * tokens * to_others, tokens * to_others]
            assert backward == [tokens * to_others, 3 * tokens * to_others]
            assert sum(forward) + sum(backward) == 8 * tokens * to_others


def test_compiled_blocks_hold_their_exchanges_in_one_graph(tmp_path):
    cases = [Case(degree=2), Case(degree=4, gpus_per_node=2)]
    lengths = [(16, 64), (15, 35), (16, 96), (9, 50)]
    (found,) = run_ranks(tmp_path, 1, compile_alone, 1, 4, cases, lengths)
    for compiled in found.values():
        assert compiled.breaks == {}
        assert set(compiled.graphs) == {2}
        # Of each degree one for every length, and at most one more for the first length.
        assert len(compiled.graphs) <= 2 * len(cases)
