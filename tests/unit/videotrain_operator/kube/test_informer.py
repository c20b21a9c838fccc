"""The informer against a scripted server: what it keeps through broken, silent and expired watches."""

import asyncio
from contextlib import suppress

import pytest

from videotrain_operator.cluster.interface import NotFound, WatchEvent
from videotrain_operator.kube import informer as informers
from videotrain_operator.kube.cache import Store
from videotrain_operator.kube.client import ApiError, ApiUnavailable
from videotrain_operator.kube.informer import Informer, Watch


def pod(name, version, uid=None):
    metadata = {"name": name, "namespace": "ns", "uid": uid or name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {}}


class Server:
    """Answers lists and watches from two scripts; a watch that has nothing more to say stays open."""

    def __init__(self, lists, watches):
        self.lists, self.watches = list(lists), list(watches)
        self.asked_from = []
        self.idle = asyncio.Event()

    async def pages(self, kind, namespace, labels):
        page = self.lists.pop(0)
        if isinstance(page, Exception):
            raise page
        items, version = page
        yield items, version

    async def watch(self, kind, namespace, labels, version):
        self.asked_from.append(version)
        for step in self.watches.pop(0) if self.watches else []:
            if isinstance(step, Exception):
                raise step
            yield step
        if not self.watches:
            self.idle.set()
            await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(informers, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(informers, "LONGEST_BACKOFF_SECONDS", 0.002)


async def follow(server):
    """Run an informer until the server has told everything; the informer and the events."""
    events = []
    informer = Informer(
        server, "Pod", Store(), lambda event: events.append((event.type, event.object["metadata"]["name"]))
    )
    task = asyncio.create_task(informer.run())
    waiting = asyncio.create_task(server.idle.wait())
    done, _ = await asyncio.wait({task, waiting}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert done, "the informer neither ended nor caught up"
    return informer, events


async def test_list_then_watch_from_the_version_of_the_list():
    server = Server([([pod("a", 3)], "5")], [[WatchEvent("ADDED", pod("b", 6)), WatchEvent("DELETED", pod("a", 7))]])
    informer, events = await follow(server)
    assert server.asked_from == ["5"]
    assert events == [("MODIFIED", "a"), ("MODIFIED", "b"), ("DELETED", "a")]
    assert [key.name for key in informer.store.names()] == ["b"]
    assert informer.synced.is_set()


async def test_a_broken_watch_goes_on_from_the_last_version_and_bookmark():
    broken = ApiUnavailable(0, "ConnectionLost", "reset")
    server = Server([([], "5")], [[WatchEvent("ADDED", pod("a", 6)), broken], ["9", broken], []])
    informer, events = await follow(server)
    assert server.asked_from == ["5", "6", "9"]
    assert events == [("MODIFIED", "a")]
    assert informer.restarts == 2


async def test_an_expired_version_is_listed_again_and_tells_what_was_missed():
    gone = ApiError(410, "Expired", "too old")
    server = Server([([pod("a", 3)], "5"), ([pod("b", 30)], "40")], [[gone], []])
    _, events = await follow(server)
    assert events == [("MODIFIED", "a"), ("MODIFIED", "b"), ("DELETED", "a")]
    assert server.asked_from == ["5", "40"]


async def test_an_outage_at_the_start_is_waited_out():
    down = ApiUnavailable(503, "ServiceUnavailable", "starting")
    informer, _ = await follow(Server([down, down, ([pod("a", 3)], "5")], [[]]))
    assert informer.synced.is_set()


@pytest.mark.parametrize(("seconds", "counts"), [(0.0, True), (3600.0, False)])
async def test_it_tells_when_the_server_came_back_from_an_outage(monkeypatch, seconds, counts):
    monkeypatch.setattr(informers, "OUTAGE_SECONDS", seconds)
    down = ApiUnavailable(0, "ConnectionLost", "refused")
    informer, _ = await follow(Server([([pod("a", 3)], "5")], [[down], [down], [WatchEvent("ADDED", pod("b", 6))]]))
    assert (informer.returned_at == informer.heard_at) == counts


async def test_one_that_was_never_away_never_came_back():
    informer, _ = await follow(Server([([pod("a", 3)], "5")], [[WatchEvent("ADDED", pod("b", 6))]]))
    assert informer.returned_at < 0


async def test_a_refusal_ends_it_loudly():
    with pytest.raises(ApiError, match="forbidden"):
        await follow(Server([ApiError(403, "Forbidden", "forbidden")], []))


REFUSAL = ApiError(403, "Forbidden", "forbidden")


async def test_a_server_that_refuses_for_a_moment_what_it_granted_is_asked_again():
    informer, events = await follow(
        Server([([pod("a", 3)], "5")], [[], [REFUSAL], [REFUSAL], [WatchEvent("ADDED", pod("b", 7))]])
    )
    assert events == [("MODIFIED", "a"), ("MODIFIED", "b")]
    assert informer.restarts == 2


async def test_one_that_goes_on_refusing_is_believed(monkeypatch):
    monkeypatch.setattr(informers, "REFUSED_SECONDS", 0.01)
    with pytest.raises(ApiError, match="forbidden"):
        await follow(Server([([pod("a", 3)], "5")], [[REFUSAL]] * 10_000))


class Seen:
    """A follower that writes down what it is told."""

    def __init__(self):
        self.told = []

    def replaced(self, items, version):
        self.told.append((version, [body["metadata"]["name"] for body in items]))

    def changed(self, body, deleted):
        self.told.append((body["metadata"]["name"], deleted))


async def test_a_server_that_starts_is_waited_for_until_it_serves_the_kind():
    seen = Seen()
    server = Server([NotFound("pods"), ([pod("a", 3)], "5")], [[WatchEvent("DELETED", pod("a", 6))]])
    task = asyncio.create_task(Watch(server, "Pod", seen, starting=True).run())
    async with asyncio.timeout(20):
        await server.idle.wait()
    task.cancel()
    assert seen.told == [(5, ["a"]), ("a", True)]


async def test_a_kind_that_is_not_served_ends_the_watch_of_others():
    with pytest.raises(NotFound, match="pods"):
        await Watch(Server([NotFound("pods")], []), "Pod", Seen()).run()
