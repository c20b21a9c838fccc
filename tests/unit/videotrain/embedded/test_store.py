"""What the object store promises, one sentence each."""

import asyncio
from datetime import UTC, datetime

import pytest

from videotrain.embedded.database import StoreError, read_objects
from videotrain.embedded.store import EmbeddedCluster, InvalidObjectError
from videotrain_operator.cluster.interface import Conflict, NotFound

KIND = "VideoTrainingRun"


@pytest.fixture
def cluster(tmp_path):
    cluster = EmbeddedCluster(tmp_path / "cluster.db")
    yield cluster
    cluster.close()


def run_manifest(**spec):
    return {"apiVersion": "videotrain.dev/v1alpha1", "kind": KIND, "metadata": {"name": "r"}, "spec": spec}


def owned(kind, name, owner, **content):
    reference = {"kind": KIND, "name": "r", "uid": owner["metadata"]["uid"], "apiVersion": "videotrain.dev/v1alpha1"}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "ownerReferences": [reference]}, **content}


def pod_manifest(**metadata):
    container = {"name": "main", "command": ["true"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", **metadata},
        "spec": {"containers": [container]},
    }


async def bound_pod(cluster, **metadata):
    pod = await cluster.apply(pod_manifest(**metadata))
    return await cluster.bind("default", "p", pod["metadata"]["uid"], "node-0")


async def test_generation_counts_changes_of_spec_only(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    run = await cluster.replace_status(KIND, "default", "r", {"phase": "x"}, run["metadata"]["resourceVersion"])
    run = await cluster.patch(KIND, "default", "r", {"metadata": {"labels": {"a": "b"}}})
    assert run["metadata"]["generation"] == 1
    run = await cluster.apply(run_manifest(seed=2))
    assert (run["metadata"]["generation"], run["status"]) == (2, {"phase": "x"})


async def test_apply_never_touches_status(cluster):
    await cluster.apply(run_manifest(seed=1) | {"status": {"phase": "forged"}})
    assert "status" not in await cluster.get(KIND, "default", "r")


async def test_fields_that_the_manager_no_longer_applies_go_and_those_of_others_stay(cluster):
    await cluster.apply(run_manifest(a=1, nested={"x": 1, "y": 2}), manager="user")
    await cluster.apply(run_manifest(b=3, nested={"y": 2}), manager="operator")
    run = await cluster.apply(run_manifest(nested={"z": 4}), manager="user")
    assert run["spec"] == {"b": 3, "nested": {"y": 2, "z": 4}}


async def test_a_users_patch_survives_the_next_apply_of_another(cluster):
    await cluster.apply(run_manifest(seed=1))
    await cluster.patch(KIND, "default", "r", {"spec": {"suspend": True}})
    run = await cluster.apply(run_manifest(seed=1))
    assert run["spec"] == {"seed": 1, "suspend": True}
    run = await cluster.patch(KIND, "default", "r", {"spec": {"suspend": None}})
    assert run["spec"] == {"seed": 1}


async def test_a_status_write_at_an_old_version_is_a_conflict(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    await cluster.apply(run_manifest(seed=2))
    with pytest.raises(Conflict, match="resourceVersion"):
        await cluster.replace_status(KIND, "default", "r", {}, run["metadata"]["resourceVersion"])


async def test_a_precondition_on_an_object_that_is_gone_is_a_conflict_and_creates_nothing(cluster):
    manifest = run_manifest(seed=1)
    manifest["metadata"]["uid"] = "1234"
    with pytest.raises(Conflict):
        await cluster.apply(manifest)
    with pytest.raises(NotFound):
        await cluster.get(KIND, "default", "r")


async def test_the_content_of_an_immutable_config_map_cannot_change_but_its_labels_can(cluster):
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c"},
        "immutable": True,
        "data": {"a": "1"},
    }
    await cluster.apply(manifest)
    with pytest.raises(InvalidObjectError, match="data is immutable"):
        await cluster.apply(manifest | {"data": {"a": "2"}})
    labelled = await cluster.apply(manifest | {"metadata": {"name": "c", "labels": {"x": "y"}}})
    assert labelled["metadata"]["labels"] == {"x": "y"}


async def test_the_spec_of_a_pod_cannot_change(cluster):
    await bound_pod(cluster)
    await cluster.apply(pod_manifest(annotations={"a": "b"}))
    changed = pod_manifest()
    changed["spec"]["containers"][0]["command"] = ["false"]
    with pytest.raises(InvalidObjectError, match="spec cannot be changed"):
        await cluster.apply(changed)


async def test_an_unknown_kind_is_refused_with_the_known_ones(cluster):
    with pytest.raises(InvalidObjectError, match="VideoTrainingRun, Pod"):
        await cluster.apply({"kind": "Deployment", "metadata": {"name": "d"}})


async def test_a_pod_gets_one_node_once(cluster):
    pod = await bound_pod(cluster)
    scheduled = pod["status"]["conditions"][0]
    assert (scheduled["type"], scheduled["status"]) == ("PodScheduled", "True")
    assert scheduled["lastTransitionTime"] >= pod["metadata"]["creationTimestamp"]
    with pytest.raises(Conflict):
        await cluster.bind("default", "p", pod["metadata"]["uid"], "node-1")


async def test_a_bound_pod_stays_until_its_node_has_stopped_it_and_confirms(cluster):
    pod = await bound_pod(cluster)
    await cluster.delete("Pod", "default", "p", grace_seconds=5)
    pod = await cluster.get("Pod", "default", "p")
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 5
    version = pod["metadata"]["resourceVersion"]
    await cluster.replace_status("Pod", "default", "p", pod["status"] | {"phase": "Failed"}, version)
    assert (await cluster.get("Pod", "default", "p"))["status"]["phase"] == "Failed"
    await cluster.delete("Pod", "default", "p", grace_seconds=0)
    with pytest.raises(NotFound):
        await cluster.get("Pod", "default", "p")


async def test_a_deleted_pod_without_grace_goes_as_soon_as_it_has_stopped(cluster):
    await bound_pod(cluster)
    await cluster.delete("Pod", "default", "p", grace_seconds=0)
    pod = await cluster.get("Pod", "default", "p")
    version = pod["metadata"]["resourceVersion"]
    await cluster.replace_status("Pod", "default", "p", pod["status"] | {"phase": "Succeeded"}, version)
    assert await cluster.list("Pod", "default") == []


async def test_a_second_deletion_can_shorten_the_grace_but_not_prolong_it(cluster):
    await bound_pod(cluster)
    for asked, expected in ((20, 20), (60, 20), (3, 3)):
        await cluster.delete("Pod", "default", "p", grace_seconds=asked)
        assert (await cluster.get("Pod", "default", "p"))["metadata"]["deletionGracePeriodSeconds"] == expected


async def test_a_pod_without_a_node_is_deleted_at_once(cluster):
    await cluster.apply(pod_manifest())
    await cluster.delete("Pod", "default", "p")
    assert await cluster.list("Pod", "default") == []


async def test_finalizers_hold_an_object_until_they_are_removed(cluster):
    await cluster.apply(pod_manifest(finalizers=["videotrain.dev/bill"]))
    await cluster.delete("Pod", "default", "p")
    assert "deletionTimestamp" in (await cluster.get("Pod", "default", "p"))["metadata"]
    await cluster.apply(pod_manifest())
    assert await cluster.list("Pod", "default") == []


async def test_owned_objects_follow_their_owner_and_running_pods_get_their_grace(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    await cluster.apply(owned("Service", "s", run))
    await cluster.apply(owned("Pod", "p", run, spec={"containers": [{"name": "m"}]}))
    pod = await cluster.get("Pod", "default", "p")
    await cluster.bind("default", "p", pod["metadata"]["uid"], "node-0")
    await cluster.delete(KIND, "default", "r")
    assert await cluster.list("Service", "default") == []
    assert "deletionTimestamp" in (await cluster.get("Pod", "default", "p"))["metadata"]


async def test_an_object_whose_owner_is_already_gone_is_collected(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    await cluster.delete(KIND, "default", "r")
    await cluster.apply(owned("Service", "s", run))
    assert await cluster.list("Service", "default") == []


async def test_a_network_policy_is_kept_with_its_run_although_nothing_enforces_it(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    await cluster.apply(owned("NetworkPolicy", "p", run, spec={"podSelector": {}, "ingress": [{}]}))
    await cluster.apply(owned("NetworkPolicy", "p", run, spec={"podSelector": {}, "ingress": []}))
    (policy,) = await cluster.list("NetworkPolicy", "default")
    assert policy["spec"] == {"podSelector": {}, "ingress": []}
    await cluster.delete(KIND, "default", "r")
    assert await cluster.list("NetworkPolicy", "default") == []


async def test_the_same_event_again_is_counted(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    for message in ("one", "two", "two"):
        await cluster.emit_event(run, "Normal", "Tested", message)
    events = await cluster.list("Event", "default")
    assert [(event["message"], event["count"]) for event in events] == [("one", 1), ("two", 2)]
    assert events[0]["involvedObject"]["uid"] == run["metadata"]["uid"]


async def test_an_event_with_a_name_is_recorded_once_at_its_own_time(cluster):
    run = await cluster.apply(run_manifest(seed=1))
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for _ in range(2):
        await cluster.emit_event(run, "Normal", "Tested", "one", name="a", at=at)
    await cluster.emit_event(run, "Normal", "Tested", "one", name="b", at=at)
    events = await cluster.list("Event", "default")
    assert sorted((event["metadata"]["name"], event["count"]) for event in events) == [("r.a", 1), ("r.b", 1)]
    assert {event["lastTimestamp"] for event in events} == {"2026-11-01T12:00:00.000000Z"}


async def test_a_watch_sees_its_kind_from_its_call_on_until_it_is_closed(cluster):
    await cluster.apply(run_manifest(seed=1))
    watch = cluster.watch(KIND, "default")
    await cluster.apply(pod_manifest())
    await cluster.apply(run_manifest(seed=2))
    await cluster.delete(KIND, "default", "r")
    types = [(await anext(watch)).type for _ in range(3)]
    assert types == ["MODIFIED", "MODIFIED", "DELETED"]
    watch.end()
    assert [event async for event in watch] == []


async def test_a_reader_waits_for_the_next_change(cluster):
    watch = cluster.watch(KIND, "default")
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    assert not waiting.done()
    await cluster.apply(run_manifest(seed=1))
    assert (await waiting).type == "ADDED"


async def test_callers_cannot_change_what_is_stored(cluster):
    manifest = run_manifest(seed=1)
    (await cluster.apply(manifest))["spec"]["seed"] = 2
    manifest["spec"]["seed"] = 3
    (await cluster.get(KIND, "default", "r"))["spec"]["seed"] = 4
    assert (await cluster.get(KIND, "default", "r"))["spec"]["seed"] == 1


async def test_a_reopened_store_goes_on_counting(cluster, tmp_path):
    run = await cluster.apply(run_manifest(seed=1))
    await cluster.delete(KIND, "default", "r")
    again = EmbeddedCluster(tmp_path / "cluster.db")
    new = await again.apply(run_manifest(seed=1))
    assert int(new["metadata"]["resourceVersion"]) > int(run["metadata"]["resourceVersion"]) + 1
    assert new["metadata"]["uid"] != run["metadata"]["uid"]
    again.close()


async def test_objects_can_be_read_beside_the_running_store(cluster, tmp_path):
    await cluster.apply(run_manifest(seed=7))
    assert [run["spec"]["seed"] for run in read_objects(tmp_path / "cluster.db", KIND)] == [7]


def test_a_database_of_another_format_is_refused(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "cluster.db") as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="format 99"):
        EmbeddedCluster(tmp_path / "cluster.db")


def test_the_database_is_private_since_it_holds_secrets(cluster, tmp_path):
    assert (tmp_path / "cluster.db").stat().st_mode & 0o077 == 0
