"""A roster reaches every agent, in few requests and past those that do not answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.planner_builders import pod, seen

from videotrain_api.records import Roster, RosterNotice
from videotrain_api.relay import FANOUT, branches
from videotrain_operator.manager import announcement
from videotrain_operator.manager.announcement import Announcement


class Crowd:
    """Agents by address that pass on what they are told, and those that do not answer."""

    def __init__(self, *silent: str) -> None:
        self.silent, self.asked, self.orders = set(silent), 0, {}
        self.requests: list[str] = []

    async def tell(self, address: str, notice: RosterNotice, key: bytes) -> list[str]:
        self.asked += 1
        return self._take(address, notice)

    def _take(self, address: str, notice: RosterNotice) -> list[str]:
        self.requests.append(address)
        if address in self.silent:
            return []
        self.orders[address] = notice.roster.order()
        parts = branches(notice.to)
        told = [self._take(head, notice.model_copy(update={"to": rest})) for head, rest in parts]
        return [address, *(one for some in told for one in some)]


def roster(generation: int, action: str = "run") -> Roster:
    facts = {"runUid": "u", "stage": "s", "configHash": "0", "reason": "Started", "port": 1, "processesPerNode": 1}
    return Roster.from_wire(facts | {"generation": generation, "action": action, "members": []})


def pods(count: int):
    return seen(*(pod(i, address=f"10.0.{i // 250}.{i % 250}") for i in range(count)))


async def finished(told: Announcement) -> None:
    assert told._task is not None
    await told._task


@pytest.mark.parametrize("count", [1, 16, 17, 300, 4096])
async def test_every_agent_is_told_once_and_the_operator_speaks_to_few(count: int) -> None:
    crowd = Crowd()
    told = Announcement(crowd)
    told.spread(roster(1), pods(count))
    await finished(told)
    assert len(crowd.orders) == len(crowd.requests) == count
    assert crowd.asked == min(count, FANOUT)
    told.spread(roster(1), pods(count))
    assert len(crowd.requests) == count, "who has it is not told again"


async def test_who_is_behind_a_silent_agent_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(announcement, "LONGEST_PAUSE_SECONDS", 0.0)
    crowd = Crowd("10.0.0.0")
    told = Announcement(crowd)
    told.spread(roster(1), pods(300))
    while len(crowd.orders) < 299:
        await announcement.asyncio.sleep(0)
    crowd.silent.clear()
    await finished(told)
    assert len(crowd.orders) == 300


async def test_a_newer_roster_takes_the_place_of_one_that_is_on_its_way() -> None:
    crowd = Crowd("10.0.0.1")
    told = Announcement(crowd)
    told.spread(roster(1), pods(3))
    await announcement.asyncio.sleep(0)
    crowd.silent.clear()
    told.spread(roster(1, "stop"), pods(3))
    await finished(told)
    told.spread(roster(1), pods(3))
    assert set(crowd.orders.values()) == {(1, True, 0)}


async def test_pods_that_do_not_run_or_are_lost_are_not_told() -> None:
    crowd = Crowd()
    told = Announcement(crowd)
    first, second, third = pods(3).pods
    told.spread(roster(1), seen(replace(first, running=False), replace(second, node_lost=True), third))
    await finished(told)
    assert crowd.requests == ["10.0.0.2"]
