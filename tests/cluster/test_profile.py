"""A trace on demand in a cluster: asked for by kubectl, sent by a real operator, stored by the ranks of two nodes."""

import gzip
import json

import pytest
import pytest_asyncio
from support.chaos_lane import one_lane

from videotrain.controlplane.settings import Settings
from videotrain.objectstore.s3_client import s3_client
from videotrain.report.workdir import S3Objects

NEVER = 100_000.0
"""Seconds between a node's looks at what is mounted: a request comes by being sent, or not at all."""
pytestmark = [
    pytest.mark.parametrize("control_plane", [Settings()], indirect=True, scope="session", ids=["stock"]),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest_asyncio.fixture
async def lane(control_plane, tmp_path):
    async with one_lane(control_plane, tmp_path, NEVER) as lane:
        yield lane


def stored(lane):
    """What the traces of the newest request hold, by rank."""
    store = lane.rig.store
    objects = S3Objects(s3_client(store.endpoint_url, store.credentials, "us-east-1", timeout_seconds=60))
    traces = lane.status["profile"]["traces"]
    return {trace["rank"]: json.loads(gzip.decompress(objects.get(trace["uri"])))["traceEvents"] for trace in traces}


async def ask(lane, kubectl, text):
    """Annotate the run and wait until the request is over; returns its profile status."""
    kubectl("annotate", "vtr", "-n", lane.name, lane.name, f"videotrain.dev/profile={text}", "--overwrite")

    def over():
        profile = lane.status.get("profile") or {}
        return profile if profile.get("request") == text and profile["state"] != "Requested" else None

    return await lane.wait(over, f"what became of {text!r}")


async def test_steps_of_two_nodes_are_traced_and_stored_and_the_world_goes_on(lane, kubectl):
    await lane.create()
    await lane.whole()
    rosters, number = list(lane.rosters), lane.live["number"]

    refused = await ask(lane, kubectl, "steps=1000")
    assert (refused["state"], refused["number"]) == ("Refused", 1)
    assert "allowed: 1 to 20" in refused["message"]
    assert lane.rosters == rosters, "nobody was told"

    first = await ask(lane, kubectl, "steps=2 ranks=0,1")
    assert (first["state"], first["number"], first["ranks"]) == ("Stored", 2, [0, 1]), lane.explain()
    assert [trace["rank"] for trace in first["traces"]] == [0, 1]
    for trace in first["traces"]:
        assert trace["lastStep"] == trace["firstStep"] + 1
        assert trace["uri"].startswith(f"s3://chaos/runs/{lane.name}/train/profiles/0002/rank-")
    for events in stored(lane).values():
        names = {event.get("name", "") for event in events}
        assert any(name.startswith("aten::") for name in names)
        assert any("Optimizer.step" in name for name in names)
    told = [event["message"] for event in lane.events if event["reason"] == "ProfileStored"]
    assert [message for message in told if "trace 2: 2 stored in s3://chaos/runs" in message], lane.explain()

    second = await ask(lane, kubectl, "steps=1 ranks=1 id=again")
    assert (second["state"], second["number"], second["ranks"]) == ("Stored", 3, [1]), lane.explain()
    assert set(stored(lane)) == {1}

    mounted = lane.root(f"{lane.name}-w1").rglob("roster.json")
    assert all('"profile":{' not in path.read_text() for path in mounted), "the request came by being sent"
    assert lane.live["number"] == number, "a trace does not change the world"
    assert sum(lane.restarts.values()) == 0
    steps = lane.newest.last
    await lane.wait(lambda: (lane.newest.last or 0) > steps, "steps go on")
    assert lane.problems == []
