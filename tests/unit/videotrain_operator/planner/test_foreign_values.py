"""Whatever others write where the operator reads, the run stays managed: passes succeed, and its limits are kept."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.at_length import cases
from support.planner_builders import manifest, train_stage

from videotrain_api.render.names import ledger_name
from videotrain_api.resource.status import RunStatus
from videotrain_api.vocabulary import KIND, LEDGER_KEY, ROSTER_KEY
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.reconcile import Outcome, RunKey, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.world import Pace

KEY = RunKey(namespace="default", name="demo")
AGES = {"starting": 1, "running": 14, "second stage": 42}
"""Seconds after which the edit comes."""
ROSTER_GUARD = ("videotrain.dev/run", "videotrain.dev/run-uid")
"""Labels without which a pod is nobody's; who bills it then is another matter."""
GARBAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**53 + 1, 2**63, -(2**63), 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "x", "free", "-1 USD", "2026-01-01T12:00:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]),
    st.text(max_size=12),
    st.sampled_from([[], {}, [[]], [{}], {"a": {"b": [1]}}, ["x", 1], [None]]),
    st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(2, 200)),
)


async def one_pass(cluster: SimulatedCluster) -> Outcome:
    for _ in range(12):
        try:
            outcome = await reconcile(cluster, KEY, lambda: cluster.now, cluster, tuple(cluster.departed.values()))
        except Conflict:
            continue
        cluster.departed.clear()
        if outcome.requeue_seconds != 0:
            return outcome
    raise AssertionError("the planner does not come to rest")


async def live(cluster: SimulatedCluster, seconds: int) -> RunStatus:
    for _ in range(seconds):
        outcome = await one_pass(cluster)
        cluster.tick()
    return outcome.plan.status


@cache
def aged(seconds: int, **spec: Any) -> bytes:
    """A run in the middle of its life, pickled so that each edit has one of its own."""
    policy = {"hangSeconds": 8, "startSeconds": 20, "graceSeconds": 3}
    stages = [train_stage("first", 25), train_stage("second", 300)]
    base = {"stages": stages, "failurePolicy": policy, "nodes": {"min": 1, "max": 3}}
    cluster = SimulatedCluster(manifest(**(base | spec)), nodes=4, pace=Pace(every_steps=5))
    asyncio.run(live(cluster, seconds))
    return pickle.dumps(cluster)


def places(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Every value in JSON data, by the way to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def edited(value: Any, path: tuple[int | str, ...], change: Callable[[Any, int | str], None]) -> Any:
    copied = copy.deepcopy(value)
    here = copied
    for part in path[:-1]:
        here = here[part]
    change(here, path[-1])
    return copied


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Any, int | str], None]:
    if draw(st.booleans()):
        value = draw(GARBAGE)
        return lambda here, key: here.__setitem__(key, value)
    return lambda here, key: here.pop(key)


def edit_status(cluster: SimulatedCluster, place: int, change: Callable[[Any, int | str], None]) -> None:
    body = copy.deepcopy(cluster.run)
    paths = list(places(body["status"]))
    body["status"] = edited(body["status"], paths[place % len(paths)], change)
    cluster.put(KIND, body)


def edit_ledger(cluster: SimulatedCluster, place: int, change: Callable[[Any, int | str], None]) -> None:
    body = cluster.objects["ConfigMap", ledger_name("demo")]
    document = json.loads(body["data"][LEDGER_KEY])
    paths = list(places(document))
    body["data"][LEDGER_KEY] = json.dumps(edited(document, paths[place % len(paths)], change))


def edit_pod(cluster: SimulatedCluster, place: int, text: str | None) -> None:
    heads = [body["metadata"] for body in cluster.pods()]
    spots = [
        (head[kind], name)
        for head in heads
        for kind in ("labels", "annotations")
        for name in head.get(kind) or {}
        if name not in ROSTER_GUARD
    ]
    where, name = spots[place % len(spots)]
    if text is None:
        del where[name]
    else:
        where[name] = text


def held(cluster: SimulatedCluster) -> int:
    """Pods on nodes; those of a failed run that have ended hold none."""
    over = ("Succeeded", "Failed")
    return sum(bool(body["spec"].get("nodeName")) and body["status"]["phase"] not in over for body in cluster.pods())


async def check_managed(cluster: SimulatedCluster) -> None:
    """Passes succeed, and when the user suspends the run its nodes are free."""
    await live(cluster, 25)
    for name in list(cluster.agents):
        cluster.agents[name].silent = False
    cluster.edit(suspend=True)
    status = await live(cluster, 40)
    assert held(cluster) == 0, (status.phase, status.conditions)


SETTINGS = settings(max_examples=cases(10, 40))
PLACES = st.integers(0, 100_000)
TEXTS = st.none() | st.text(max_size=20) | st.sampled_from(["free", "[" * 9999])


@given(st.sampled_from(list(AGES.values())), PLACES, changes())
@SETTINGS
def test_any_edit_of_the_status_leaves_the_run_managed(age: int, place: int, change: Any) -> None:
    cluster = pickle.loads(aged(age))
    edit_status(cluster, place, change)
    asyncio.run(check_managed(cluster))


@given(st.sampled_from(list(AGES.values())[1:]), PLACES, changes())
@SETTINGS
def test_any_edit_of_the_ledger_leaves_the_run_managed(age: int, place: int, change: Any) -> None:
    cluster = pickle.loads(aged(age))
    edit_ledger(cluster, place, change)
    asyncio.run(check_managed(cluster))


@given(st.sampled_from(["", "x", "null", "[]", "{", "[" * 100_000, '{"pods": 5}', "5", '"x"', "1" * 5000]))
@settings(max_examples=cases(10, 20))
def test_any_text_in_place_of_the_ledger_leaves_the_run_managed(text: str) -> None:
    cluster = pickle.loads(aged(AGES["running"]))
    cluster.objects["ConfigMap", ledger_name("demo")]["data"][LEDGER_KEY] = text
    asyncio.run(check_managed(cluster))


@given(
    st.sampled_from(list(AGES.values())),
    PLACES,
    st.none() | st.text(max_size=20) | st.sampled_from(["free", "[" * 9999]),
)
@SETTINGS
def test_any_edit_of_a_label_or_annotation_leaves_the_run_managed(age: int, place: int, text: str | None) -> None:
    cluster = pickle.loads(aged(age))
    edit_pod(cluster, place, text)
    asyncio.run(check_managed(cluster))


@given(PLACES, changes())
@example(0, lambda here, key: here.__setitem__("createdAt", "2026-01-01T12:00:00"))
@SETTINGS
def test_any_edit_within_the_roster_leaves_the_run_managed(place: int, change: Any) -> None:
    cluster = pickle.loads(aged(AGES["running"]))
    roster = json.loads(cluster.objects["ConfigMap", "demo-roster"]["data"][ROSTER_KEY])
    paths = list(places(roster))
    cluster.spoil_roster(json.dumps(edited(roster, paths[place % len(paths)], change)))
    asyncio.run(check_managed(cluster))


def other_version(status: Any, *, newer: bool) -> Any:
    """As a version writes it that has one more field in every object, or lacks all that have a default."""
    if isinstance(status, list):
        return [other_version(item, newer=newer) for item in status]
    if not isinstance(status, dict):
        return status
    lacking = () if newer else ("endMessage", "message", "progress", "throughput", "columns", "outage", "failedPods")
    kept = {key: other_version(value, newer=newer) for key, value in status.items() if key not in lacking}
    return kept | ({"fieldOfALaterVersion": {"of": ["any", 1, None]}} if newer else {})


@given(st.sampled_from(list(AGES.values())[1:]), st.booleans())
@settings(max_examples=6)
def test_the_status_of_another_version_is_gone_on_from(age: int, newer: bool) -> None:
    cluster = pickle.loads(aged(age))
    body = copy.deepcopy(cluster.run)
    before = body["status"]["generation"]
    body["status"] = other_version(body["status"], newer=newer)
    body["status"]["conditions"].append(
        {"type": "OfALaterVersion", "status": "True", "reason": "Known", "lastTransitionTime": "2026-01-01T12:00:00Z"}
    )
    cluster.put(KIND, body)
    status = asyncio.run(live(cluster, 10))
    assert status.generation == before, "an edit of a later version must end no world"
    assert status.phase == "Running"
    stored = cluster.run["status"]
    assert stored["conditions"][-1]["type"] == "OfALaterVersion"
    assert (stored.get("fieldOfALaterVersion") == {"of": ["any", 1, None]}) is newer
    assert ("fieldOfALaterVersion" in stored["generations"][-1]) is newer
    asyncio.run(check_managed(cluster))


@pytest.mark.parametrize("restarts", ["many", {"application": -1}])
def test_what_cannot_be_read_is_counted_and_told_once(restarts: object) -> None:
    cluster = pickle.loads(aged(AGES["running"]))
    body = copy.deepcopy(cluster.run)
    body["status"]["restarts"] = restarts
    cluster.put(KIND, body)
    next(iter(cluster.pods()))["metadata"]["annotations"]["videotrain.dev/price"] = "free"
    outcome = asyncio.run(one_pass(cluster))
    again = asyncio.run(one_pass(cluster))
    assert outcome.plan.unreadable == ("status.restarts", "pod demo-w0: annotation videotrain.dev/price")
    assert [event.reason for event in outcome.plan.events] == ["StatusLost"]
    assert again.plan.unreadable == ("pod demo-w0: annotation videotrain.dev/price",)
    assert again.plan.events == ()


def test_a_finished_run_stays_finished_when_its_outcome_cannot_be_read() -> None:
    cluster = pickle.loads(aged(AGES["running"]))
    cluster.edit(activeDeadlineSeconds=1)
    assert asyncio.run(live(cluster, 10)).phase == "Failed"
    body = copy.deepcopy(cluster.run)
    body["status"]["conditions"] = "none"
    cluster.put(KIND, body)
    assert asyncio.run(live(cluster, 60)).phase == "Failed"
    assert held(cluster) == 0


@given(st.sampled_from(["deadline", "budget"]), PLACES, changes())
@settings(max_examples=cases(5, 15))
def test_deadline_and_budget_hold_after_any_edit_of_the_status(limit: str, place: int, change: Any) -> None:
    """Whatever was edited: a deadline that is over by the pods alone, and a budget that the pods alone have spent."""
    cluster = pickle.loads(aged(AGES["running"]))
    edit_status(cluster, place, change)
    if limit == "deadline":
        cluster.edit(activeDeadlineSeconds=20)
    else:
        cluster.edit(budget={"maxCost": "0.100"})  # 6 GPUs at 0.001 a second: spent within 17 s
    asyncio.run(live(cluster, 60))
    assert held(cluster) == 0


def test_an_edited_configuration_hash_is_not_told_to_workers() -> None:
    """They would refuse the roster for good."""
    cluster = pickle.loads(aged(AGES["running"]))
    body = copy.deepcopy(cluster.run)
    right = [stage["configHash"] for stage in body["status"]["stages"]]
    for stage in body["status"]["stages"]:
        stage["configHash"] = "0" * 16
    cluster.put(KIND, body)
    before = body["status"]["generation"]
    cluster.fail_worker("demo-w0", 1)
    status = asyncio.run(live(cluster, 10))
    roster = json.loads(cluster.objects["ConfigMap", "demo-roster"]["data"][ROSTER_KEY])
    assert status.generation > before and roster["configHash"] == right[0]
    assert [stage.config_hash for stage in status.stages] == right
