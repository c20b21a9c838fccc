"""Runs under a cluster's defaults: what begins with them, what a change does to a living world, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.planner_lives import cluster_of, condition, pass_seconds, running, told

from videotrain_api.render.defaults import parse_defaults
from videotrain_api.schema import Json
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.simulation.cluster import SimulatedCluster

FIRST: Json = {
    "image": "team/trainer:1",
    "env": {"NCCL_DEBUG": "WARN"},
    "podTemplate": {"metadata": {"labels": {"team": "video"}}},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}
SECOND: Json = FIRST | {
    "image": "team/trainer:2",
    "env": {"NCCL_DEBUG": "INFO"},
    "podTemplate": {"metadata": {"labels": {"team": "video-2"}}},
    "activeDeadlineSeconds": 1,
    "startDeadlineSeconds": 1,
}


def rule(cluster: SimulatedCluster, defaults: Json) -> None:
    cluster.rules = ClusterRules(defaults=parse_defaults(defaults))


def seen(cluster: SimulatedCluster) -> set[tuple[Any, ...]]:
    """Image, environment and team of each pod."""
    found = set()
    for pod in cluster.pods():
        worker = pod["spec"]["containers"][0]
        debug = [one["value"] for one in worker["env"] if one["name"] == "NCCL_DEBUG"]
        found.add((worker["image"], *debug, pod["metadata"]["labels"].get("team")))
    return found


async def test_a_change_restarts_no_world_and_reaches_pods_that_are_made_afterwards() -> None:
    cluster = cluster_of(machines=4, steps=200)
    rule(cluster, FIRST)
    before = await running(cluster)
    assert seen(cluster) == {("team/trainer:1", "WARN", "video")}
    frozen, pods = before.config_map, {pod["metadata"]["uid"] for pod in cluster.pods()}
    rule(cluster, SECOND)
    after = await running(cluster, seconds=5)
    assert {pod["metadata"]["uid"] for pod in cluster.pods()} == pods, "no world is restarted, and no limit falls on it"
    assert after.generation == before.generation
    node = cluster.pods()[0]["spec"]["nodeName"]
    cluster.nodes[node] = False
    status = await pass_seconds(cluster, 40)
    assert status.phase == "Running"
    assert status.generation > before.generation
    # All members run one program with one environment; what does not matter to them is the new pod's.
    assert seen(cluster) == {("team/trainer:1", "WARN", "video"), ("team/trainer:1", "WARN", "video-2")}
    assert status.config_map == frozen
    assert status.defaults is not None
    assert status.defaults.image == "team/trainer:1"


async def test_a_run_takes_other_defaults_when_it_begins_anew() -> None:
    cluster = cluster_of(machines=4, steps=200)
    rule(cluster, FIRST)
    frozen = (await running(cluster)).config_map
    cluster.run["spec"]["suspend"] = True
    await pass_seconds(cluster, 20)
    assert cluster.pods() == []
    rule(cluster, SECOND | {"activeDeadlineSeconds": 100_000, "startDeadlineSeconds": 100_000})
    cluster.run["spec"]["suspend"] = False
    status = await running(cluster, seconds=25)
    assert seen(cluster) == {("team/trainer:2", "INFO", "video-2")}
    assert status.config_map == frozen


async def test_a_lost_status_does_not_forget_what_a_world_holds() -> None:
    cluster = cluster_of(machines=3, steps=200)
    rule(cluster, FIRST)
    await running(cluster)
    rule(cluster, SECOND)
    cluster.run["status"] = {}
    status = await running(cluster, seconds=3)
    assert status.defaults is not None
    assert status.defaults.image == "team/trainer:1"
    assert status.defaults.active_deadline_seconds is None


async def test_the_default_deadline_fails_a_run_whose_pods_never_come() -> None:
    cluster = cluster_of(machines=0)
    rule(cluster, {"startDeadlineSeconds": 30})
    assert (await pass_seconds(cluster, 25)).phase != "Failed"
    status = await pass_seconds(cluster, 15)
    assert (status.phase, condition(status, "Failed").reason) == ("Failed", "StartDeadlineExceeded")
    # A finished run keeps what it had: no default deletes what ended before it was set.
    rule(cluster, {"startDeadlineSeconds": 30, "ttlSecondsAfterFinished": 0})
    await pass_seconds(cluster, 10)
    assert cluster.run["status"]["defaults"] == {"startDeadlineSeconds": 30, "env": {}, "enforced": []}


async def test_an_override_is_refused_until_it_is_allowed() -> None:
    cluster = cluster_of(machines=3)
    cluster.run["spec"]["image"] = "mine:1"
    rule(cluster, FIRST | {"enforced": ["image"]})
    status = await pass_seconds(cluster, 5)
    found = condition(status, "Accepted")
    assert (status.phase, found.status, found.reason) == ("Invalid", "False", "DefaultEnforced")
    assert "spec.image" in found.message and "runDefaults.image" in found.message
    assert len(told(cluster, "DefaultEnforced")) == 1
    assert cluster.pods() == []
    rule(cluster, FIRST)
    await running(cluster)
    assert {image for image, *_ in seen(cluster)} == {"mine:1"}


async def test_what_is_enforced_later_leaves_a_world_alone_and_holds_when_it_begins_anew() -> None:
    cluster = cluster_of(machines=3, steps=200, image="mine:1")
    await running(cluster)
    rule(cluster, FIRST | {"enforced": ["image"]})
    await running(cluster, seconds=5)
    assert {image for image, *_ in seen(cluster)} == {"mine:1"}
    cluster.run["spec"]["suspend"] = True
    await pass_seconds(cluster, 20)
    cluster.run["spec"]["suspend"] = False
    status = await pass_seconds(cluster, 5)
    assert condition(status, "Accepted").reason == "DefaultEnforced"
    assert cluster.pods() == []


async def test_no_pod_is_made_of_defaults_that_are_not_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that died in between would take the next one's defaults for those that its pods have."""
    cluster = cluster_of(machines=4, steps=200)
    rule(cluster, FIRST)
    await running(cluster)
    cluster.run["spec"]["suspend"] = True
    await pass_seconds(cluster, 20)
    rule(cluster, SECOND | {"activeDeadlineSeconds": 100_000, "startDeadlineSeconds": 100_000})
    cluster.run["spec"]["suspend"] = False
    apply, on_record = cluster.apply, []

    async def noted(manifest: Json, *more: Any) -> Json:
        if manifest["kind"] == "Pod":
            on_record.append(cluster.run["status"]["defaults"]["image"])
        return await apply(manifest, *more)

    monkeypatch.setattr(cluster, "apply", noted)
    await running(cluster, seconds=25)
    assert set(on_record) == {"team/trainer:2"}
