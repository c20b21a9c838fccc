"""How runs share connections to agents."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from videotrain_operator.cluster.connections import Connections


class Askers:
    """Whoever asks for connections and keeps them."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.there: Counter[str] = Counter()
        self.order: list[str] = []
        self.tasks: list[tuple[str, asyncio.Task[None]]] = []

    async def _hold(self, run: str) -> None:
        async with self.connections.taken(run.encode()):
            self.there[run] += 1
            self.order.append(run)
            try:
                await asyncio.Event().wait()
            finally:
                self.there[run] -= 1

    async def ask(self, runs: Iterable[str]) -> None:
        self.tasks += [(run, asyncio.create_task(self._hold(run))) for run in runs]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self, which: Callable[[str], bool] = lambda run: True, most: int | None = None) -> None:
        """End questions of some runs, the oldest first, whether they have a connection or wait for one."""
        ended = [task for run, task in self.tasks if which(run)][:most]
        self.tasks = [(run, task) for run, task in self.tasks if task not in ended]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        await self.settle()


async def test_a_run_alone_has_as_many_as_a_run_may_have() -> None:
    askers = Askers(Connections(1024, 64))
    await askers.ask(["a"] * 100)
    assert askers.there["a"] == 64


@pytest.mark.parametrize(("runs", "wanted"), [(16, 64), (200, 8), (510, 3)])
async def test_however_many_others_want_all_there_is_one_for_a_new_run(runs: int, wanted: int) -> None:
    askers = Askers(Connections(1024, 64))
    names = [f"stalling{number}" for number in range(runs)]
    await askers.ask(name for name in names for _ in range(wanted))
    assert all(askers.there[name] >= 1 for name in names)
    await askers.ask(["honest"])
    assert askers.there["honest"] == 1
    assert askers.there.total() <= 1024


async def test_no_more_than_there_are_and_who_has_fewest_is_next() -> None:
    askers = Askers(Connections(4, 64))
    await askers.ask(["a", "b", "c", "d", "a", "e"])
    assert askers.order == ["a", "b", "c", "d"]
    await askers.end(lambda run: run == "b")
    assert askers.order == ["a", "b", "c", "d", "e"], "the second of a came earlier, but a has one"
    await askers.end()
    assert askers.there.total() == 0
    await askers.ask(["a", "b", "c", "d"])
    assert askers.there.total() == 4


async def test_who_gives_up_waiting_stands_in_nobodys_way() -> None:
    """Neither another run's nor its own."""
    askers = Askers(Connections(1, 1))
    await askers.ask(["holder", "a", "b"])
    waiting = [task for run, task in askers.tasks if run == "a"]
    await askers.end(lambda run: run == "a")
    assert waiting[0].cancelled()
    await askers.end(lambda run: run == "holder")
    assert askers.order == ["holder", "b"]
    await askers.ask(["a"])
    await askers.end(lambda run: run in "ab", most=1)
    assert askers.order == ["holder", "b", "a"]
    await askers.end()
    await askers.ask(["a"])
    assert askers.there["a"] == 1


async def test_a_connection_that_comes_together_with_the_cancellation_is_not_lost() -> None:
    askers = Askers(Connections(1, 1))
    await askers.ask(["holder", "a"])
    (holder, waiting) = [task for _, task in askers.tasks]
    holder.cancel()
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(holder, waiting, return_exceptions=True)
    askers.tasks.clear()
    await askers.ask(["b"])
    assert askers.there["b"] == 1
