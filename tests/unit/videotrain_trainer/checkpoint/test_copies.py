"""Which copies of the state a world goes on from: against a plain statement of the rule, for any copies."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from videotrain_trainer.checkpoint.copies import Offer, newest_set

OFFERS = st.lists(
    st.builds(
        Offer,
        generation=st.integers(1, 3),
        step=st.integers(0, 6),
        world_size=st.integers(1, 3),
        rank=st.integers(0, 2),
        proof_after=st.integers(0, 6),
        holder=st.integers(0, 3),
        name=st.sampled_from("abc"),
    ),
    max_size=14,
)


def offer(rank, step=5, generation=1, world_size=2, proof_after=0, holder=0):
    return Offer(generation, step, world_size, rank, proof_after, holder, f"{generation}-{step}-{rank}-{holder}")


@given(OFFERS, st.integers(0, 6))
def test_the_chosen_copies_are_one_whole_state_that_is_no_older_than_the_checkpoint(offers, stored_step):
    chosen = newest_set(offers, stored_step)
    possible = {
        (generation, step, size)
        for generation, step, size in itertools.product(range(1, 4), range(max(1, stored_step), 7), range(1, 4))
        if all(
            any(
                (o.generation, o.step, o.world_size, o.rank) == (generation, step, size, rank)
                and o.proof_after <= stored_step
                for o in offers
            )
            for rank in range(size)
        )
    }
    if not possible:
        assert chosen is None
        return
    assert chosen is not None
    assert [found.rank for found in chosen] == list(range(len(chosen)))
    assert {(found.generation, found.step, found.world_size) for found in chosen} == {max(possible)}
    assert all(found in offers and found.proof_after <= stored_step for found in chosen)


def test_every_share_is_needed_and_any_holder_will_do():
    assert newest_set([offer(0)], 0) is None
    assert [found.holder for found in newest_set([offer(0, holder=1), offer(1, holder=3)], 0)] == [1, 3]


def test_a_newer_step_goes_first_and_an_older_set_is_better_than_none():
    old, new = [offer(0, step=4), offer(1, step=4)], [offer(0, step=6), offer(1, step=6)]
    assert [found.step for found in newest_set([*old, *new], 0)] == [6, 6]
    assert [found.step for found in newest_set([*old, new[0]], 0)] == [4, 4]


def test_what_an_older_generation_did_beyond_the_newer_ones_start_does_not_count():
    older, newer = [offer(0, step=9), offer(1, step=9)], [offer(0, 8, generation=2), offer(1, 8, generation=2)]
    assert {found.generation for found in newest_set([*older, *newer], 0)} == {2}


def test_a_checkpoint_that_is_newer_or_whose_steps_no_copy_tells_wins():
    assert newest_set([offer(0), offer(1)], 6) is None
    assert newest_set([offer(0), offer(1)], 5) is not None
    assert newest_set([offer(0), offer(1, proof_after=3)], 2) is None
