import asyncio
from datetime import UTC, datetime

import pytest

from videotrain_api.resource.status import RunStatus
from videotrain_operator.cluster import apply as applying
from videotrain_operator.cluster.apply import apply, batches, delete_seen
from videotrain_operator.planner.decision import Deletion, Event, Plan

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def pod(index):
    return {"kind": "Pod", "metadata": {"name": f"w{index}"}, "spec": {}}


def test_pods_go_together_and_the_roster_goes_alone():
    policy, config = {"kind": "NetworkPolicy", "metadata": {}}, {"kind": "ConfigMap", "metadata": {}}
    roster = {"kind": "ConfigMap", "metadata": {"resourceVersion": "7"}, "data": {"roster.json": "{}"}}
    found = list(batches([policy, config, pod(0), pod(1), roster, config]))
    assert found == [[policy, config], [pod(0), pod(1)], [roster], [config]]


async def test_a_failed_write_is_raised_when_its_neighbours_are_done():
    done = []

    async def good():
        done.append(1)

    async def bad():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await applying._together([bad(), good()])
    assert done == [1]


class Deletes:
    """Notes what is deleted, and how many at the same time."""

    def __init__(self):
        self.asked, self.under_way, self.together = [], 0, []

    async def delete(self, kind, namespace, name, *, uid, grace_seconds=None):
        self.under_way += 1
        self.together.append(self.under_way)
        await asyncio.sleep(0)
        self.asked.append((kind, name, uid))
        self.under_way -= 1


async def test_every_pod_goes_by_its_uid():
    cluster = Deletes()
    pods = [Deletion(kind="Pod", name=f"w{index}", uid=f"u{index}") for index in range(4096)]
    await delete_seen(cluster, "team", pods)
    assert sorted(cluster.asked) == sorted(("Pod", pod.name, pod.uid) for pod in pods)
    assert max(cluster.together) > 1


class Noting:
    """A cluster that notes what is written."""

    def __init__(self):
        self.done = []

    async def apply(self, manifest, manager=""):
        self.done.append(manifest["metadata"]["name"])

    async def replace_status(self, kind, namespace, name, status, resource_version):
        self.done.append("status")
        return {"metadata": {"name": name}, "status": status}

    async def emit_event(self, regarding, type_, reason, message, **_):
        self.done.append("event")


async def test_agents_are_told_as_soon_as_the_roster_is_stored():
    cluster = Noting()
    roster = {"kind": "ConfigMap", "metadata": {"name": "roster"}, "data": {"roster.json": "{}"}}
    ledger = {"kind": "ConfigMap", "metadata": {"name": "ledger"}}
    event = Event(type="Normal", reason="Started", message="")
    plan = Plan(apply=(roster, ledger), status=RunStatus(), events=(event,))
    run = {"metadata": {"name": "r", "uid": "u", "resourceVersion": "1"}}
    await apply(cluster, run, plan, {"phase": "Starting"}, NOW, on_roster=lambda found: cluster.done.append(found))
    assert cluster.done == ["roster", plan, "ledger", "status", "event"]
