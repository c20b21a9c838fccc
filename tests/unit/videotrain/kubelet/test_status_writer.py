"""The writer of a pod's status against a server that fails in the ways that servers fail."""

import asyncio
import copy

import pytest

from videotrain.kubelet import status_writer as kube_writer
from videotrain.kubelet.status import PodReport, Record
from videotrain.kubelet.status_writer import StatusWriter
from videotrain.processes.process import Ending
from videotrain.tasks import end
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiUnavailable


class Server:
    """Answers patches by merging them, after raising what it was told to."""

    def __init__(self, pod, errors=()):
        self.pod, self.errors, self.patches = pod, list(errors), []

    async def patch(self, kind, namespace, name, patch, **_):
        if self.errors:
            raise self.errors.pop(0)
        assert patch["metadata"]["uid"] == self.pod["metadata"]["uid"]
        self.patches.append(patch["status"])
        self.pod = copy.deepcopy(self.pod)
        self.pod["status"] |= {key: value for key, value in patch["status"].items() if key != "conditions"}
        self.pod["status"]["conditions"] = patch["status"]["conditions"]
        for key in ("podIPs", "hostIPs"):
            if key in self.pod["status"]:
                self.pod["status"][key] = self.pod["status"][key][1:]
        self.pod["metadata"]["resourceVersion"] = str(int(self.pod["metadata"]["resourceVersion"]) + 1)
        return self.pod


@pytest.fixture
def pod():
    head = {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "5", "generation": 1}
    return {"metadata": head, "spec": {}, "status": {"phase": "Pending", "podIPs": [{"ip": "10.64.9.9"}]}}


@pytest.fixture
def report():
    return PodReport([], Record({"name": "main", "image": "i"}), address="10.64.0.1")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(kube_writer, "RETRY_SECONDS", (0.001, 0.002))


async def settled(writer):
    task = asyncio.create_task(writer.run())
    writer.touch()
    async with asyncio.timeout(60):
        await writer.settled()
    return task


async def test_an_end_is_written_although_the_server_was_away_and_others_wrote_at_the_same_time(pod, report):
    errors = [ApiUnavailable(0, "ConnectionLost", "away"), Conflict("modified"), NotFound("not served yet")]
    server = Server(pod, errors)
    writer = StatusWriter(server, pod, report)
    at = "2026-11-23T06:00:00Z"
    report.main.run(at, started=True, ready=True)
    report.main.end(Ending(3, at, at, "Error"), "")
    report.over = True
    await end(await settled(writer))
    assert (server.pod["status"]["phase"], server.errors) == ("Failed", [])
    assert server.pod["status"]["podIPs"] == [{"ip": "10.64.0.1"}]


async def test_what_the_server_holds_already_is_not_written_and_what_others_changed_is_put_right(pod, report):
    server = Server(pod)
    writer = StatusWriter(server, pod, report)
    task = await settled(writer)
    writer.observe(server.pod | {"metadata": server.pod["metadata"] | {"resourceVersion": "7"}})
    await writer.settled()
    assert len(server.patches) == 1
    changed = copy.deepcopy(server.pod)
    changed["metadata"]["resourceVersion"] = "8"
    next(item for item in changed["status"]["conditions"] if item["type"] == "Ready")["status"] = "Unknown"
    writer.observe(changed)
    await writer.settled()
    assert len(server.patches) == 2
    await end(task)


async def test_an_older_version_of_the_pod_changes_nothing(pod, report):
    writer = StatusWriter(Server(pod), pod, report)
    old = pod | {"metadata": pod["metadata"] | {"resourceVersion": "4"}}
    writer.observe(old)
    assert writer.pod is pod
