"""A roster that comes by one way alone, on a real API server with process nodes and real worlds.

A kubelet looks at mounted config maps when it syncs a pod, which may be a minute late; what the operator sends may be
lost. Either is enough, and neither ever makes two worlds.
"""

import os
import signal
from collections import Counter

import pytest
import pytest_asyncio
from support.chaos_end import check_orders
from support.chaos_lane import one_lane
from support.chaos_records import check_world

from videotrain.controlplane.settings import Settings

NEVER = 100_000.0
LATE = 20.0
DEATHS = 2
"""Of workers, in each test."""
pytestmark = [
    pytest.mark.parametrize("control_plane", [Settings()], indirect=True, scope="session", ids=["stock"]),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest_asyncio.fixture
async def lane(control_plane, tmp_path, request):
    async with one_lane(control_plane, tmp_path, request.param) as lane:
        yield lane


def follower(lane):
    return f"{lane.name}-w1"


async def a_generation_later(lane):
    """A worker dies after a checkpoint, and two nodes train in a newer generation."""
    await lane.enter()
    number = lane.live["number"]
    os.kill(lane.worker(follower(lane)), signal.SIGKILL)
    await lane.wait(lambda: lane.status.get("generation", 0) > number and lane.is_whole(), "the next generation trains")


async def check_accounts(lane):
    """Each death of a worker made one new world, so did each node that a busy machine lost; nothing was repeated."""
    await lane.suspend(True)
    await lane.wait(lambda: lane.status["phase"] == "Suspended", "it is suspended")
    ends = Counter(generation["endReason"] for generation in lane.status["generations"])
    deaths, lost = ends.pop("WorkerFailed", 0) + ends.pop("PodFailed", 0), ends.pop("NodeLost", 0)
    assert (deaths, ends) == (DEATHS, {"Suspended": 1}), lane.explain()
    assert lane.restarts == {"infrastructure": deaths + lost, "application": 0, "preemption": 0, "hang": 0}
    numbers = {generation["number"] for generation in lane.status["generations"]}
    assert numbers == set(range(1, deaths + lost + 2)) == {roster.generation for roster in lane.rosters}
    assert lost or {number for number, world in lane.generations.items() if world.steps} == numbers
    check_world(lane.generations)
    assert lane.problems == []
    await check_orders([lane])


@pytest.mark.parametrize("lane", [NEVER], indirect=True, ids=["the mounted file is never refreshed"])
async def test_what_is_sent_is_enough(lane):
    await lane.create()
    await lane.whole()
    for _ in range(DEATHS):
        await a_generation_later(lane)
    mounted = lane.root(follower(lane)).rglob("roster.json")
    assert all(f'"generation":{lane.live["number"]},' not in path.read_text() for path in mounted)
    await check_accounts(lane)


@pytest.mark.parametrize("lane", [LATE], indirect=True, ids=["the mounted file is late"])
async def test_the_mounted_file_is_enough_and_what_comes_twice_is_taken_once(lane):
    await lane.create()
    deaf = lane.folder / "deaf"
    deaf.touch()
    await lane.whole()
    await a_generation_later(lane)
    deaf.unlink()
    await a_generation_later(lane)
    await check_accounts(lane)
