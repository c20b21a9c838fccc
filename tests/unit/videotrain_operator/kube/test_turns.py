"""Who gets the next turn."""

from __future__ import annotations

import asyncio

import pytest

from videotrain_operator.kube.turns import Turns


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def ask(turns: Turns, name: str, patience: float, order: list[str], go: asyncio.Event) -> None:
    async with turns.taken(patience):
        order.append(name)
        await go.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_urgent_go_first_and_nobody_waits_longer_than_its_patience_for_those_who_come_later() -> None:
    clock, order, go = Clock(), [], asyncio.Event()
    turns = Turns(1, clock)
    asked = [asyncio.create_task(ask(turns, "first", 0.0, order, go))]
    await settle()
    for at, name, patience in (
        (0.0, "patient", 5.0),
        (1.0, "urgent", 0.0),
        (2.0, "also urgent", 0.0),
        (6.0, "late", 0.0),
    ):
        clock.now = at
        asked.append(asyncio.create_task(ask(turns, name, patience, order, go)))
        await settle()
    assert order == ["first"]
    go.set()
    await asyncio.gather(*asked)
    assert order == ["first", "urgent", "also urgent", "patient", "late"]


async def test_no_more_than_allowed_go_at_the_same_time() -> None:
    turns, there, most = Turns(3), 0, 0

    async def work() -> None:
        nonlocal there, most
        async with turns.taken():
            there += 1
            most = max(most, there)
            await asyncio.sleep(0)
            there -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert most == 3


@pytest.mark.parametrize("passes_before_cancelling", [0, 1])
async def test_who_gives_up_keeps_no_turn_from_others(passes_before_cancelling: int) -> None:
    """Also where the turn comes in the same moment as the cancellation."""
    turns, order, go = Turns(1), [], asyncio.Event()
    holder = asyncio.create_task(ask(turns, "holder", 0.0, order, go))
    await settle()
    waiting = asyncio.create_task(ask(turns, "gives up", 0.0, order, asyncio.Event()))
    await settle()
    if passes_before_cancelling:
        go.set()
        await asyncio.sleep(0)
    waiting.cancel()
    go.set()
    await asyncio.gather(holder, waiting, return_exceptions=True)
    async with asyncio.timeout(5), turns.taken():
        pass


async def test_it_is_crowded_while_somebody_waits_who_has_not_given_up() -> None:
    order, go = [], asyncio.Event()
    turns = Turns(1)
    first = asyncio.create_task(ask(turns, "first", 0.0, order, go))
    await settle()
    assert not turns.crowded
    second = asyncio.create_task(ask(turns, "second", 0.0, order, go))
    await settle()
    assert turns.crowded
    second.cancel()
    await settle()
    assert not turns.crowded
    go.set()
    await first


async def lend(turns: Turns, seconds: float, go: asyncio.Event, order: list[str]) -> None:
    async with turns.taken() as turn:
        async with turn.lent(seconds):
            await go.wait()
        order.append("has it again")


async def test_others_have_a_turn_that_is_lent_and_it_comes_back() -> None:
    turns, order, answered, go = Turns(1), [], asyncio.Event(), asyncio.Event()
    asking = asyncio.create_task(lend(turns, 0.0, answered, order))
    other = asyncio.create_task(ask(turns, "other", 0.0, order, go))
    async with asyncio.timeout(5):
        while order != ["other"]:
            await asyncio.sleep(0)
    answered.set()
    await settle()
    assert order == ["other"], "there is one turn, and the other has it"
    go.set()
    await asyncio.gather(asking, other)
    assert order == ["other", "has it again"]
    async with asyncio.timeout(5), turns.taken():
        pass


async def test_what_takes_a_moment_lends_nothing() -> None:
    turns, order, answered, go = Turns(1), [], asyncio.Event(), asyncio.Event()
    asking = asyncio.create_task(lend(turns, 3600.0, answered, order))
    other = asyncio.create_task(ask(turns, "other", 0.0, order, go))
    await settle()
    answered.set()
    go.set()
    await asyncio.gather(asking, other)
    assert order == ["has it again", "other"]


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
async def test_who_is_cancelled_while_others_have_its_turn_takes_none_with_it(seconds: float) -> None:
    turns = Turns(1)
    asking = asyncio.create_task(lend(turns, seconds, asyncio.Event(), []))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    most, there = 0, 0

    async def work() -> None:
        nonlocal most, there
        async with turns.taken():
            there += 1
            most = max(most, there)
            await settle()
            there -= 1

    async with asyncio.timeout(5):
        await asyncio.gather(*(work() for _ in range(4)))
    assert most == 1
