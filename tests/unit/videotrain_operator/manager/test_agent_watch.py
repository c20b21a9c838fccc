"""How often the agents of a run can wake it."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from support.planner_builders import SIGNING_KEY

from videotrain_operator.manager import agent_watch
from videotrain_operator.manager.agent_watch import Listening


class News:
    """Agents with news at once, each time that they are asked."""

    def __init__(self) -> None:
        self._tags = itertools.count()

    async def changed(self, address: str, known: str, key: bytes) -> str:
        return str(next(self._tags))

    def silent_seconds(self, address: str) -> float:
        return 0.0


async def test_ever_new_facts_wake_a_run_a_number_of_times_and_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    turn = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await turn(0)

    monkeypatch.setattr(agent_watch.asyncio, "sleep", sleep)
    monkeypatch.setattr(agent_watch.time, "monotonic", lambda: 0.0)
    wakes = 0

    def wake() -> None:
        nonlocal wakes
        wakes += 1
        if wakes == agent_watch.MOST_NEWS + 3:
            raise asyncio.CancelledError

    listening = Listening(News(), wake)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await listening._listen("10.0.0.1", SIGNING_KEY)
    waits = [seconds for seconds in slept if seconds != agent_watch.BETWEEN_SECONDS]
    assert waits == [0.0] * agent_watch.MOST_NEWS + [1.0, 2.0, 3.0], "no time goes by: each has to wait longer"
