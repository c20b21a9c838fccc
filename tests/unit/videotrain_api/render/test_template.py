"""The pod template is a strategic merge patch, as users know it from kubectl, and cannot break the worker."""

from __future__ import annotations

from typing import Any

import pytest
from support.planner_builders import RUN_UID, manifest, run_of

from videotrain_api.render.merge import strategic_merge
from videotrain_api.render.pod import render_pod
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

Json = dict[str, Any]


def rendered(spec: Json, avoid: tuple[str, ...] = ()) -> Json:
    run = parse_run(manifest(podTemplate={"spec": spec}))
    return render_pod(run, 0, "demo-config-x", avoid)["spec"]


def worker(spec: Json) -> Json:
    return next(item for item in spec["containers"] if item["name"] == "worker")


def by(key: str, items: list[Json]) -> dict[str, Json]:
    assert len({item[key] for item in items}) == len(items)
    return {item[key]: item for item in items}


def test_the_worker_is_found_by_name_and_keeps_what_is_not_named():
    spec = rendered({"containers": [{"name": "worker", "resources": {"limits": {"memory": "900Gi"}}}]})
    assert [item["name"] for item in spec["containers"]] == ["worker"]
    assert worker(spec)["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "900Gi"}
    assert worker(spec)["command"] == ["videotrain-trainer", "agent"]


def test_a_sidecar_is_added_behind_the_worker():
    spec = rendered({"containers": [{"name": "logs", "image": "fluent-bit"}]})
    assert [item["name"] for item in spec["containers"]] == ["worker", "logs"]


def test_environment_merges_by_name():
    env = by("name", worker(rendered(worker_patch(env=[{"name": "TORCH_LOGS", "value": "+dynamo"}])))["env"])
    assert env["TORCH_LOGS"] == {"name": "TORCH_LOGS", "value": "+dynamo"} and "VIDEOTRAIN_RUN" in env


def worker_patch(**fields: Any) -> Json:
    return {"containers": [{"name": "worker", **fields}]}


def test_mounts_merge_by_path_and_volumes_by_name():
    patch = worker_patch(volumeMounts=[{"mountPath": "/tmp", "name": "scratch"}, {"mountPath": "/data", "name": "nfs"}])
    spec = rendered(patch | {"volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "nfs", "nfs": {"path": "/"}}]})
    mounts = by("mountPath", worker(spec)["volumeMounts"])
    assert mounts["/tmp"]["name"] == "scratch" and mounts["/data"]["name"] == "nfs"
    assert {"files", "run", "shm"} <= {mount["name"] for mount in mounts.values()}
    assert {"files", "cache", "scratch", "nfs"} <= set(by("name", spec["volumes"]))


def test_another_source_of_a_volume_replaces_the_old_one():
    spec = rendered({"volumes": [{"name": "cache", "hostPath": {"path": "/nvme"}}]})
    assert by("name", spec["volumes"])["cache"] == {"name": "cache", "hostPath": {"path": "/nvme"}}


def test_the_same_source_of_a_volume_is_merged():
    spec = rendered({"volumes": [{"name": "shm", "emptyDir": {"sizeLimit": "9Gi"}}]})
    assert by("name", spec["volumes"])["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "9Gi"}


def test_tolerations_are_appended_once():
    mine = {"key": "spot", "operator": "Exists"}
    found = rendered({"tolerations": [mine, mine | {"key": "node.kubernetes.io/not-ready"}]})["tolerations"]
    assert found.count(mine) == 1 and len(found) == 4
    again = strategic_merge({"tolerations": [mine]}, {"tolerations": [mine]})
    assert again == {"tolerations": [mine]}


def test_null_removes_a_field_and_a_directive_an_item():
    spec = rendered(
        {
            "enableServiceLinks": None,
            "securityContext": {"fsGroup": None},
            "containers": [{"name": "worker", "terminationMessagePolicy": None}],
        }
    )
    assert "enableServiceLinks" not in spec and "terminationMessagePolicy" not in worker(spec)
    assert "fsGroup" not in spec["securityContext"] and spec["securityContext"]["runAsNonRoot"] is True
    base = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    assert strategic_merge(base, {"env": [{"name": "A", "$patch": "delete"}]}) == {"env": [base["env"][1]]}
    assert strategic_merge(base, {"env": [{"name": "C", "$patch": "delete"}]}) == base


def test_directives_replace_and_retain():
    base = {"securityContext": {"a": 1, "b": 2}, "env": [{"name": "A", "value": "1"}]}
    assert strategic_merge(base, {"securityContext": {"$patch": "replace", "c": 3}})["securityContext"] == {"c": 3}
    assert strategic_merge(base, {"securityContext": {"$patch": "delete"}}) == {"env": base["env"]}
    retained = strategic_merge(base, {"securityContext": {"$retainKeys": ["b", "c"], "c": 3}})
    assert retained["securityContext"] == {"b": 2, "c": 3}
    assert strategic_merge(base, {"env": [{"$patch": "replace"}, {"name": "B", "value": "2"}]})["env"] == [
        {"name": "B", "value": "2"}
    ]


def test_an_environment_variable_has_one_source():
    base = {"env": [{"name": "A", "value": "1"}]}
    source = {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert strategic_merge(base, {"env": [{"name": "A", "valueFrom": source}]}) == {
        "env": [{"name": "A", "valueFrom": source}]
    }


def test_a_merge_changes_neither_side():
    base = {"containers": [{"name": "worker", "env": [{"name": "A", "value": "1"}]}]}
    patch = {"containers": [{"name": "worker", "env": [{"name": "B", "value": "2"}]}, {"name": "x"}], "t": [1]}
    before = (repr(base), repr(patch))
    merged = strategic_merge(base, patch)
    merged["containers"][0]["env"][1]["value"] = merged["t"] = "changed"
    assert (repr(base), repr(patch)) == before


def test_an_affinity_of_the_template_stands_beside_ours():
    zones = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in ("a", "b")]
    mine = {"labelSelector": {"matchLabels": {"app": "noisy"}}, "topologyKey": "kubernetes.io/hostname"}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    given = {
        "nodeAffinity": {required: {"nodeSelectorTerms": zones}},
        "podAntiAffinity": {required: [mine]},
    }
    affinity = rendered({"affinity": given}, avoid=("bad-1", "bad-2"))["affinity"]
    terms = affinity["nodeAffinity"][required]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in terms] == [zone["matchExpressions"] for zone in zones]
    for term in terms:  # they are alternatives, so a suspect node must be excluded by each
        assert [(f["operator"], f["values"]) for f in term["matchFields"]] == [
            ("NotIn", ["bad-1"]),
            ("NotIn", ["bad-2"]),
        ]
    apart = affinity["podAntiAffinity"][required]
    assert apart[0] == mine and apart[1]["labelSelector"]["matchLabels"]["videotrain.dev/run-uid"] == RUN_UID
    assert rendered({"affinity": None})["affinity"]["podAntiAffinity"][required] == apart[1:]


REFUSED: dict[str, tuple[Json, str]] = {
    "worker deleted": (worker_patch(**{"$patch": "delete"}), "worker cannot be removed"),
    "worker replaced": (worker_patch(**{"$patch": "replace"}), "worker cannot be removed"),
    "containers replaced": ({"containers": [{"$patch": "replace"}, {"name": "x"}]}, "worker cannot be removed"),
    "containers null": ({"containers": None}, "cannot be removed"),
    "everything replaced": ({"$patch": "replace", "containers": []}, "cannot be replaced or deleted"),
    "volume deleted": ({"volumes": [{"name": "tmp", "$patch": "delete"}]}, "cannot be removed"),
    "roster elsewhere": ({"volumes": [{"name": "files", "emptyDir": {}}]}, "belongs to the operator"),
    "rank": (worker_patch(env=[{"name": "RANK", "value": "0"}]), "reserved"),
    "secret in clear": (worker_patch(env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]), "credentialsSecret"),
    "mount deleted": (worker_patch(volumeMounts=[{"mountPath": "/tmp", "$patch": "delete"}]), "agent needs"),
    "environment null": (worker_patch(env=None), "the agent reads it"),
    "restarted by the kubelet": ({"restartPolicy": "OnFailure"}, "set by the operator"),
    "past the scheduler": ({"nodeName": "gpu-1"}, "nodeSelector"),
    "shorter grace": ({"terminationGracePeriodSeconds": 1}, "graceSeconds"),
    "no mapping": ({"containers": ["worker"]}, "list of mappings"),
    "no list": ({"tolerations": {"key": "x"}}, "list of mappings"),
    "twice": ({"volumes": [{"name": "x"}, {"name": "x"}]}, "twice"),
    "unknown directive": ({"securityContext": {"$patch": "drop"}}, "allowed: delete"),
    "no terms": (
        {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}},
        "nodeSelectorTerms",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_would_break_the_worker_is_refused(name):
    spec, message = REFUSED[name]
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest(podTemplate={"spec": spec}))
    assert message in str(caught.value)
    assert all(problem.path.startswith("spec.podTemplate.spec") for problem in caught.value.problems)


def test_credentials_of_other_keys_may_come_from_a_secret():
    source = {"secretKeyRef": {"name": "s3", "key": "id"}}
    env = worker(rendered(worker_patch(env=[{"name": "AWS_ACCESS_KEY_ID", "valueFrom": source}])))["env"]
    assert {"name": "AWS_ACCESS_KEY_ID", "valueFrom": source} in env


def test_identity_survives_a_template_that_nobody_checked():
    run = run_of(manifest(podTemplate={"metadata": {"labels": {"videotrain.dev/index": "9"}}}))
    assert render_pod(run, 3, "c")["metadata"]["labels"]["videotrain.dev/index"] == "3"
