"""How many requests are in flight at servers of different kinds."""

from __future__ import annotations

import asyncio

import pytest

from videotrain_operator.kube.pace import FEWEST, MOST, Pace
from videotrain_operator.kube.turns import Turns


class Pressed(Turns):
    """Somebody always waits for a turn."""

    @property
    def crowded(self) -> bool:
        return True


class Server:
    """Works on so many requests at the same time; whoever comes beyond that makes all of them slower."""

    def __init__(self, cores: float, turns: Turns) -> None:
        self.cores, self.now = cores, 0.0
        self._turns, self._pace = turns, Pace(turns, lambda: self.now)

    def answer(self, requests: int, verb: str = "post", seconds: float = 0.01) -> int:
        """How many are in flight after so many answers."""
        for _ in range(requests):
            took = seconds * max(1.0, self._turns.most / self.cores)
            self.now += took / self._turns.most
            self._pace.answered(verb, "Pod", took)
        return self._turns.most


@pytest.mark.parametrize(("cores", "fewest", "most"), [(0.5, 3, 3), (2, 3, 5), (6, 7, 9), (64, MOST, MOST)])
def test_a_few_wait_at_the_server_whatever_it_can_do(cores: float, fewest: int, most: int) -> None:
    turns = Pressed(1)
    server = Server(64, turns)
    server.answer(8)  # as quick as it is when nobody else asks
    server.cores = cores
    assert fewest <= server.answer(2000) <= most


def test_a_server_that_others_slow_down_is_asked_less_and_more_again_afterwards() -> None:
    turns = Pressed(1)
    server = Server(64, turns)
    assert server.answer(500) == MOST
    server.cores = 1
    assert server.answer(500) <= FEWEST + 1
    server.cores = 64
    assert server.answer(500) == MOST


def test_what_takes_long_by_its_nature_is_no_sign_of_waiting() -> None:
    turns = Pressed(1)
    server = Server(64, turns)
    for _ in range(250):
        server.answer(1, "post", 0.005)
        server.answer(1, "put", 0.05)
    assert turns.most == MOST


def test_a_server_that_became_slower_for_good_is_known_so_after_a_while() -> None:
    turns = Pressed(1)
    server = Server(64, turns)
    server.answer(500)
    for _ in range(30):
        server.now += 60
        server.answer(20, seconds=0.04)
    assert turns.most == MOST


def test_no_more_are_allowed_than_were_ever_wanted() -> None:
    """With nobody waiting, nothing tells what more requests at the same time would do."""
    turns = Turns(1)
    assert Server(64, turns).answer(500) == FEWEST


async def test_turns_follow_a_change_when_they_are_given_back() -> None:
    turns, there, go = Turns(3), 0, asyncio.Event()

    async def work() -> None:
        nonlocal there
        async with turns.taken():
            there += 1
            await go.wait()
            there -= 1

    first = [asyncio.create_task(work()) for _ in range(6)]
    await asyncio.sleep(0)
    assert there == 3
    turns.most = 1
    go.set()
    await asyncio.sleep(0)
    go.clear()
    for _ in range(5):
        await asyncio.sleep(0)
    assert there == 1
    go.set()
    await asyncio.gather(*first)
    assert there == 0
    async with turns.taken():
        assert not turns.crowded
