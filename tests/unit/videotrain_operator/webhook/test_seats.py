"""Who gets a place to be judged, and when."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from videotrain_operator.webhook.seats import NoSeat, Seats

SECONDS = 30.0


class Reviews:
    """Reviews that stay in their places until they are told to leave."""

    def __init__(self, seats: Seats) -> None:
        self.seats, self.inside = seats, list[str]()
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, address: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._stay(address), name=address)
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def _stay(self, address: str) -> None:
        async with self.seats.taken(address):
            self.inside.append(address)
            try:
                await asyncio.Event().wait()
            finally:
                self.inside.remove(address)


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)


async def test_one_address_leaves_places_to_others() -> None:
    reviews = Reviews(Seats(4, 2, 100))
    flood = [await reviews.begin("flood") for _ in range(50)]
    assert reviews.inside == ["flood"] * 2
    await reviews.begin("api")
    assert reviews.inside == ["flood", "flood", "api"]
    await end(*flood)
    assert reviews.inside == ["api"]


async def test_addresses_that_wait_take_turns() -> None:
    reviews = Reviews(Seats(1, 1, 100))
    tasks = [await reviews.begin(address) for address in "aaaabbc"]
    order = []
    while reviews.inside:
        order.append(reviews.inside[0])
        there = [task for task, address in zip(tasks, "aaaabbc", strict=True) if address == order[-1]]
        await end(next(task for task in there if not task.done()))
    assert order == list("aabcaba")


async def test_more_than_may_wait_are_refused_and_those_who_gave_up_do_not_count() -> None:
    reviews = Reviews(Seats(1, 1, 2))
    first, second, third = [await reviews.begin("a") for _ in range(3)]
    with pytest.raises(NoSeat, match="2 reviews of a wait"):
        await (await reviews.begin("a"))
    await reviews.begin("b")
    await end(second)
    fourth = await reviews.begin("a")
    assert not fourth.done()
    await end(first)
    assert reviews.inside == ["a"], "the third, which is the oldest that waits"
    await end(third)
    assert reviews.inside == ["b"]


@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost_or_given_twice(seed: int) -> None:
    draw, reviews = random.Random(seed), Reviews(Seats(4, 2, 5))
    tasks: list[asyncio.Task[None]] = []
    for _ in range(300):
        if draw.random() < 0.55 or not tasks:
            tasks.append(await reviews.begin(draw.choice("abcd")))
        else:
            leaving = draw.sample(tasks, min(len(tasks), draw.randint(1, 3)))
            for task in leaving:  # several in one turn
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            await asyncio.sleep(0)
            tasks = [task for task in tasks if not task.done()]
        held = Counter(reviews.inside)
        waiting = Counter(task.get_name() for task in tasks if not task.done()) - held
        assert held.total() <= 4 and all(count <= 2 for count in held.values())
        assert held.total() == 4 or all(held[address] == 2 for address in waiting), "nobody waits for nothing"
    await end(*tasks)
    assert reviews.inside == []
    for address in "abcd":
        await reviews.begin(address)
    assert reviews.inside == list("abcd")
