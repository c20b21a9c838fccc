"""A roster that comes by one way alone, on a real API server with process nodes and real worlds.

A kubelet looks at mounted config maps when it syncs a pod, which may be a minute late; what the operator sends may be
lost. Either is enough, and neither ever makes two worlds.
"""

import os
import signal

import pytest
import pytest_asyncio
from support.chaos_end import check_orders
from support.chaos_lane import Lane
from support.chaos_records import RecordKeeper, check_world
from support.chaos_rig import NODE_GRACE_SECONDS, Rig, until
from support.training_worlds import make_latents

from videotrain.controlplane.settings import NodeMonitoring, Settings
from videotrain_operator.kube.client import connect

MONITORING = NodeMonitoring(period_seconds=1, grace_seconds=NODE_GRACE_SECONDS, toleration_seconds=30)
SETTINGS = Settings(nodes=MONITORING)
NEVER = 100_000.0
LATE = 20.0
pytestmark = [
    pytest.mark.parametrize("control_plane", [SETTINGS], indirect=True, scope="session", ids=["impatient"]),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest_asyncio.fixture
async def lane(control_plane, tmp_path, request):
    keeper = RecordKeeper(tmp_path / "nodes" / "pods", tmp_path / "records")
    async with connect(str(control_plane.kubeconfig())) as client:
        rig = Rig(control_plane, client, tmp_path)
        lane = Lane(rig, keeper, "running", make_latents(tmp_path))
        try:
            await rig.start("chaos", lane.nodes, refresh_seconds=request.param)
            yield lane
            await client.delete("Namespace", "", lane.name)
            namespaces, key = rig.views["Namespace"].objects, ("", lane.name)
            await until(lambda: key not in namespaces, "the namespace is gone", lane.explain)
        finally:
            await rig.stop()
            keeper.close()


def follower(lane):
    return f"{lane.name}-w1"


async def a_generation_later(lane):
    """A worker dies after a checkpoint, and two nodes train in a newer generation."""
    await lane.enter()
    number = lane.live["number"]
    os.kill(lane.worker(follower(lane)), signal.SIGKILL)
    await lane.wait(lambda: lane.status.get("generation", 0) > number and lane.is_whole(), "the next generation trains")


async def check_accounts(lane):
    """After three worlds or more (a busy machine loses nodes, too): no two at a time, and nothing repeated or lost."""
    await lane.suspend(True)
    await lane.wait(lambda: lane.status["phase"] == "Suspended", "it is suspended")
    assert len([generation for generation in lane.generations.values() if generation.steps]) >= 3
    check_world(lane.generations)
    assert lane.problems == []
    assert lane.restarts["infrastructure"] >= 2
    await check_orders([lane])


@pytest.mark.parametrize("lane", [NEVER], indirect=True, ids=["the mounted file is never refreshed"])
async def test_what_is_sent_is_enough(lane):
    await lane.create()
    await lane.whole()
    for _ in range(2):
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
