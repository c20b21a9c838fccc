"""kopf's handlers, run by kopf against a server: what they see, and what ends neither them nor the process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.small_api import SmallApi

from videotrain_api.vocabulary import API_VERSION, KIND, PLURAL
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.client import load_configuration
from videotrain_operator.kube.run_watch import Runs
from videotrain_operator.manager import handlers, kopf_thread
from videotrain_operator.manager.kopf_thread import KopfThread

A, B = Key("team", "a"), Key("team", "b")
LONGEST = 60.0


def run(key: Key, version: int) -> dict[str, Any]:
    head = {"namespace": key.namespace, "name": key.name, "uid": f"u-{key.name}", "resourceVersion": str(version)}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": head, "spec": {}}


class Follower:
    """A kopf that follows into a store."""

    def __init__(self, kubeconfig: Path) -> None:
        self.store, self.heard = Store(), asyncio.Queue[WatchEvent]()
        self.begun = asyncio.Queue[None]()
        self.runs = Runs(self.store, self.heard.put_nowait)
        self.kopf = KopfThread(self.runs, lambda: load_configuration(str(kubeconfig)))

    async def follow(self) -> None:
        await self.kopf.follow((), lambda: self.begun.put_nowait(None))


@pytest_asyncio.fixture
async def api() -> AsyncIterator[SmallApi]:
    async with SmallApi() as api:
        yield api


@pytest_asyncio.fixture
async def follower(api: SmallApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Follower]:
    monkeypatch.setattr(kopf_thread, "AGAIN_SECONDS", 0.01)
    api.objects[PLURAL] = [run(A, 1)]
    follower = Follower(api.kubeconfig(tmp_path))
    task = asyncio.create_task(follower.follow())
    async with asyncio.timeout(LONGEST):
        yield follower
        follower.kopf.stop()
        await task


async def test_runs_are_listed_and_followed_and_nothing_is_ever_written(api: SmallApi, follower: Follower) -> None:
    assert (await follower.heard.get()).type == "MODIFIED"
    api.tell(PLURAL, "ADDED", run(B, 2))
    assert (await follower.heard.get()).object["metadata"]["name"] == "b"
    api.tell(PLURAL, "DELETED", run(A, 3))
    assert (await follower.heard.get()).type == "DELETED"
    assert follower.store.names() == (B,)
    assert api.written == []


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_kopf_begins_anew_when_it_gave_up_and_says_so(
    api: SmallApi, follower: Follower, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    await follower.begun.get()
    await follower.heard.get()
    caplog.set_level(logging.INFO)
    api.refused[PLURAL] = status
    await follower.begun.get()
    assert "runs are not watched, next try in" in caplog.text
    assert "kopf has ended" in caplog.text, "its cleanup handler ran"
    api.objects[PLURAL].append(run(B, 2))
    api.refused.clear()
    assert (await follower.heard.get()).object["metadata"]["name"] == "b"


def test_no_handler_keeps_a_state_on_the_object_or_needs_a_server_of_kopfs() -> None:
    """Those of changes, timers, daemons and indices would; and admission without a server ends kopf."""
    kinds = handlers.registry
    for none in (kinds._changing, kinds._spawning, kinds._indexing, kinds._webhooks):
        assert none.get_all_handlers() == []
    assert len(kinds._watching.get_all_handlers()) == 1


def deep(key: Key, version: int) -> dict[str, Any]:
    """A run as the API server stores it, 5,000 levels deep, with a place where its text can be put."""
    return run(key, version) | {"spec": {"podTemplate": "DEEP"}}


async def test_a_run_that_is_too_deep_for_pythons_reader_ends_the_watch_of_nobody(
    follower: Follower, api: SmallApi
) -> None:
    nested = '{"a":' * 5000 + "1" + "}" * 5000
    assert (await follower.heard.get()).object["metadata"]["name"] == "a"
    api.tell_text(PLURAL, json.dumps({"type": "ADDED", "object": deep(B, 2)}).replace('"DEEP"', nested))
    assert (await follower.heard.get()).object["metadata"]["name"] == "b"
    api.tell(PLURAL, "MODIFIED", run(A, 3))
    assert (await follower.heard.get()).object["metadata"]["name"] == "a"
    assert follower.begun.qsize() == 1, "kopf went on"
