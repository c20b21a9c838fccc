"""Ending tasks, and being ended meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from videotrain.kubelet.container import Stop
from videotrain.tasks import end, end_all

PATIENCE = 30.0


class Cleaning:
    """A task that takes its time to clean up once it is cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.may_end, self.error = asyncio.Event(), asyncio.Event(), error
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.begun.set()
            await self.may_end.wait()
            if self.error is not None:
                raise self.error


@pytest.mark.parametrize("ending", [end, lambda task: end_all([task])], ids=["one", "several"])
async def test_who_is_cancelled_while_a_task_cleans_up_does_not_go_on(ending) -> None:
    cleaning, went_on = Cleaning(), []
    await asyncio.sleep(0)  # it has begun

    async def work() -> None:
        await ending(cleaning.task)
        went_on.append("work")
        await asyncio.Event().wait()

    caller = asyncio.create_task(work())
    await cleaning.begun.wait()
    caller.cancel()
    await asyncio.wait([caller], timeout=PATIENCE)
    assert caller.cancelled() and not went_on
    assert cleaning.task.done()


async def test_who_is_cancelled_already_ends_one_task_after_the_other() -> None:
    first, second = Cleaning(), Cleaning()
    first.may_end.set()
    second.may_end.set()
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for cleaning in (first, second):
                await end(cleaning.task)
                ended.append(cleaning)

    caller = asyncio.create_task(work())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller], timeout=PATIENCE)
    assert caller.cancelled() and ended == [first, second]


async def test_an_error_in_cleaning_up_is_raised() -> None:
    cleaning = Cleaning(ValueError("disk"))
    cleaning.may_end.set()
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="disk"):
        await end(cleaning.task)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_in_the_moment_in_which_a_pod_is_to_stop_is_not_lost(turns: int) -> None:
    stop = Stop(lambda: None)
    sleeper = asyncio.create_task(stop.sleep(PATIENCE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it waits
    stop.asked.set()
    for _ in range(turns):  # of the loop, in one of which the wait is over and the sleeper has not been told
        await asyncio.sleep(0)
    taken = sleeper.cancel()
    await asyncio.wait([sleeper], timeout=PATIENCE)
    assert sleeper.cancelled() == taken
