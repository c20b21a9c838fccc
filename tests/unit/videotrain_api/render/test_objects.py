"""The worker pod, as a cluster gets it."""

from __future__ import annotations

from typing import Any

from support.planner_builders import RUN_UID, manifest, run_of

from videotrain_api.render.kueue import PodGroup, pod_group
from videotrain_api.render.objects import render_objects
from videotrain_api.render.pod import render_pod

POOL = {
    "gpusPerNode": 8,
    "pricePerGpuHour": "2.00",
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "rdmaResource": "rdma/hca",
    "rdmaCount": 8,
    "cpu": "96",
    "memory": "1200Gi",
    "runtimeClassName": "nvidia",
    "schedulerName": "gang",
    "topologyKeys": ["nvidia.com/gpu.clique", "topology.kubernetes.io/zone"],
    "env": {"NCCL_SOCKET_IFNAME": "eth0"},
    "shmGibibytes": 128,
    "priorityClassName": "training",
    "serviceAccountName": "trainer",
    "imagePullSecrets": ["registry"],
}


def worker(**spec: Any) -> dict[str, Any]:
    run = run_of(manifest(**spec))
    return render_pod(run, 3, "demo-config-x")


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (one,) = pod["spec"]["containers"]
    return one


def test_it_asks_for_what_the_pool_has() -> None:
    pod = worker(pool=POOL, imagePullPolicy="Always")
    resources = container(pod)["resources"]
    assert resources["limits"] == {"nvidia.com/gpu": "8", "rdma/hca": "8", "memory": "1200Gi"}
    assert resources["requests"] == resources["limits"] | {"cpu": "96"}, "CPU is never limited"
    assert container(pod)["imagePullPolicy"] == "Always"
    assert pod["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert pod["spec"]["priorityClassName"] == "training" and pod["spec"]["serviceAccountName"] == "trainer"
    assert pod["spec"]["runtimeClassName"] == "nvidia" and pod["spec"]["schedulerName"] == "gang"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]


def test_it_gives_a_lost_node_less_than_a_minute() -> None:
    lost = [t for t in worker()["spec"]["tolerations"] if t["key"].startswith("node.kubernetes.io/")]
    assert {t["key"] for t in lost} == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
    assert all(30 <= t["tolerationSeconds"] <= 60 and t["effect"] == "NoExecute" for t in lost)


def test_its_grace_covers_the_workers_and_the_agent() -> None:
    assert worker()["spec"]["terminationGracePeriodSeconds"] > 20


def test_it_is_restricted_as_the_pod_security_standard_asks() -> None:
    pod = worker()
    own = container(pod)["securityContext"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_rdma_adds_no_capability_that_a_restricted_namespace_refuses() -> None:
    assert container(worker(pool=POOL))["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_nothing_kills_an_agent_that_answers_late() -> None:
    one = container(worker())
    assert one["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": 9410}
    assert "livenessProbe" not in one and "startupProbe" not in one
    assert worker()["spec"]["restartPolicy"] == "Never"


def test_every_mount_has_its_volume_and_shared_memory_is_memory() -> None:
    pod = worker(pool=POOL)
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["name"]: mount for mount in container(pod)["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Gi"}
    roster, config, key = volumes["files"]["projected"]["sources"]
    assert config["configMap"] == {"name": "demo-config-x"}
    assert roster["configMap"]["name"].endswith("-roster")
    assert roster["configMap"]["items"] == [{"key": "roster.json", "path": "roster/roster.json"}]
    assert key["secret"]["items"] == [{"key": "key", "path": "key/key", "mode": 0o400}]
    assert mounts["files"] == {"name": "files", "mountPath": "/etc/videotrain", "readOnly": True}


def test_two_workers_of_a_run_never_share_a_node() -> None:
    term = worker()["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["videotrain.dev/run-uid"] == RUN_UID


def test_workers_are_drawn_together_by_topology_but_not_bound_to_it() -> None:
    near = worker(pool=POOL)["spec"]["affinity"]["podAffinity"]
    assert set(near) == {"preferredDuringSchedulingIgnoredDuringExecution"}
    terms = near["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [(t["weight"], t["podAffinityTerm"]["topologyKey"]) for t in terms] == [
        (100, "nvidia.com/gpu.clique"),
        (50, "topology.kubernetes.io/zone"),
    ]
    assert all(t["podAffinityTerm"]["labelSelector"]["matchLabels"]["videotrain.dev/run-uid"] == RUN_UID for t in terms)
    assert "podAffinity" not in worker()["spec"]["affinity"]


def cached(**cache: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = worker(pool=POOL | {"cache": cache})
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "cache"]
    (mount,) = [m for m in container(pod)["volumeMounts"] if m["name"] == "cache"]
    return {key: value for key, value in volume.items() if key != "name"}, mount


def test_the_cache_is_a_bounded_folder_an_ephemeral_volume_or_a_claim() -> None:
    assert cached()[0] == {"emptyDir": {}}
    assert cached(sizeGibibytes=500)[0] == {"emptyDir": {"sizeLimit": "500Gi"}}
    claim = cached(sizeGibibytes=500, storageClassName="nvme")[0]["ephemeral"]["volumeClaimTemplate"]
    assert claim["spec"]["storageClassName"] == "nvme"
    assert claim["spec"]["resources"] == {"requests": {"storage": "500Gi"}}
    assert claim["metadata"]["labels"]["videotrain.dev/run"] == "demo"


def test_workers_that_share_a_claim_never_share_a_folder() -> None:
    volume, mount = cached(claimName="shared")
    assert volume == {"persistentVolumeClaim": {"claimName": "shared"}}
    assert mount["subPathExpr"] == "$(VIDEOTRAIN_POD_NAME)"
    assert "subPathExpr" not in cached()[1]


def test_the_environment_of_the_pool_reaches_the_workers() -> None:
    env = {item["name"]: item for item in container(worker(pool=POOL))["env"]}
    assert env["NCCL_SOCKET_IFNAME"]["value"] == "eth0"


def test_credentials_come_from_the_named_secret_only() -> None:
    without = {item["name"] for item in container(worker())["env"]}
    storage = {"uri": "s3://videotrain/demo", "credentialsSecret": "s3"}
    env = {item["name"]: item for item in container(worker(storage=storage))["env"]}
    assert "AWS_ACCESS_KEY_ID" not in without
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"}


def test_it_knows_who_it_is() -> None:
    env = {item["name"]: item for item in container(worker())["env"]}
    fields = {"VIDEOTRAIN_POD_NAME", "VIDEOTRAIN_POD_UID", "VIDEOTRAIN_POD_IP", "VIDEOTRAIN_NODE_NAME"}
    assert fields <= set(env) and env["VIDEOTRAIN_RUN"]["value"] == "demo"
    assert env["VIDEOTRAIN_POD_NAME"]["value"] == worker()["metadata"]["name"]
    assert container(worker())["command"] == ["videotrain-trainer", "agent"]


def test_the_price_of_the_day_travels_with_the_pod() -> None:
    assert worker(pool=POOL)["metadata"]["annotations"] == {"videotrain.dev/price": "2.00 USD"}


def test_a_queue_puts_its_labels_on_the_pod() -> None:
    head = worker(queue={"name": "team-a", "priorityClass": "high"})["metadata"]
    assert head["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert head["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert head["labels"]["kueue.x-k8s.io/pod-group-name"] == "demo-11111-a1"
    assert {key: value for key, value in head["annotations"].items() if "kueue" in key} == {
        "kueue.x-k8s.io/pod-group-total-count": "3",
        "kueue.x-k8s.io/role-hash": "worker",
    }


def test_a_later_group_has_a_name_and_a_size_of_its_own() -> None:
    run = run_of(manifest(queue={"name": "team-a"}))
    group = PodGroup(name="demo-a7", size=2, retriable=False)
    head = render_pod(run, 0, "c", avoid=["bad-node"], group=group)["metadata"]
    assert head["labels"]["kueue.x-k8s.io/pod-group-name"] == "demo-a7"
    assert head["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    assert head["annotations"]["kueue.x-k8s.io/retriable-in-group"] == "false"
    assert pod_group(run, attempt=2, size=1) == PodGroup(name="demo-11111-a2", size=1)


def test_without_a_queue_nothing_speaks_of_one() -> None:
    head = worker()["metadata"]
    assert not [key for key in head["labels"] | head["annotations"] if "kueue" in key]


def test_team_and_cost_center_are_passed_on() -> None:
    body = manifest()
    body["metadata"]["labels"] = {"videotrain.dev/team": "vision", "videotrain.dev/cost-center": "42", "x": "y"}
    labels = render_pod(run_of(body), 0, "c")["metadata"]["labels"]
    assert labels["videotrain.dev/team"] == "vision" and labels["videotrain.dev/cost-center"] == "42"
    assert "x" not in labels


def test_a_template_adds_to_the_pod_and_cannot_steal_its_identity() -> None:
    template = {
        "metadata": {"labels": {"a": "b", "videotrain.dev/run": "other"}, "annotations": {"c": "d"}},
        "spec": {"containers": [{"name": "worker", "resources": {"limits": {"memory": "900Gi"}}}]},
    }
    pod = worker(podTemplate=template)
    assert pod["metadata"]["annotations"]["c"] == "d"
    assert pod["metadata"]["name"] == "demo-w3" and pod["metadata"]["labels"]["videotrain.dev/run"] == "demo"
    assert pod["metadata"]["labels"]["a"] == "b"
    assert container(pod)["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "900Gi"}


def test_all_objects_belong_to_the_run_and_the_configuration_is_immutable() -> None:
    objects = render_objects(run_of(manifest()))
    kinds = ["ConfigMap", "ConfigMap", "NetworkPolicy", "Pod", "Pod", "Pod"]
    assert [item["kind"] for item in objects] == kinds
    for item in objects:
        (owner,) = item["metadata"]["ownerReferences"]
        assert owner["uid"] == RUN_UID and owner["controller"] is True
    assert objects[0]["immutable"] is True
