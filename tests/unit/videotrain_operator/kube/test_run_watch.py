"""Runs come from a watch, and now and then from a list beside it."""

from __future__ import annotations

from typing import Any

from videotrain_api.vocabulary import API_VERSION, KIND
from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.run_watch import Runs

Json = dict[str, Any]
A = Key("team", "a")


def run(version: int, uid: str = "u-1") -> Json:
    head = {"namespace": "team", "name": "a", "uid": uid, "resourceVersion": str(version)}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": head, "spec": {}}


def follower() -> tuple[Runs, Store, list[str]]:
    store, told = Store(), list[str]()
    return Runs(store, lambda event: told.append(event.type)), store, told


async def test_a_run_that_is_deleted_while_a_list_is_read_does_not_come_back() -> None:
    runs, store, told = follower()
    runs.take("ADDED", run(5))
    runs.begin_list()
    runs.take("DELETED", run(7))
    runs.take("MODIFIED", run(5))  # as the list still had it
    assert store.get(A) is None
    assert told == ["MODIFIED", "DELETED"]


async def test_its_successor_of_the_same_name_is_taken() -> None:
    runs, store, _ = follower()
    runs.begin_list()
    runs.take("DELETED", run(7))
    runs.take("MODIFIED", run(9, uid="u-2"))
    held = store.get(A)
    assert held is not None and held["metadata"]["uid"] == "u-2"


async def test_a_list_tells_what_the_watch_lost() -> None:
    runs, store, told = follower()
    runs.take("ADDED", run(5))
    runs.begin_list()
    runs.keep_only([], 8, "")
    assert store.get(A) is None and told == ["MODIFIED", "DELETED"]
