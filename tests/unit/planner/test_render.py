"""The worker pod, as a cluster gets it."""

from __future__ import annotations

from typing import Any

from support.planner_builders import RUN_UID, manifest, run_of

from videotrain_operator.planner.render.objects import render_objects
from videotrain_operator.planner.render.pod import render_pod

POOL = {
    "gpusPerNode": 8,
    "pricePerGpuHour": "2.00",
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "rdmaResource": "rdma/hca",
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
    pod = worker(pool=POOL)
    limits = container(pod)["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "8", "rdma/hca": "1"} == container(pod)["resources"]["requests"]
    assert pod["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert pod["spec"]["priorityClassName"] == "training" and pod["spec"]["serviceAccountName"] == "trainer"
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


def test_rdma_needs_pinned_memory() -> None:
    assert container(worker(pool=POOL))["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


def test_every_mount_has_its_volume_and_shared_memory_is_memory() -> None:
    pod = worker(pool=POOL)
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["name"]: mount for mount in container(pod)["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Gi"}
    assert volumes["config"]["configMap"] == {"name": "demo-config-x"}
    item = volumes["roster"]["downwardAPI"]["items"][0]
    assert item["path"] == "roster" and "videotrain.dev/roster" in item["fieldRef"]["fieldPath"]
    assert mounts["roster"]["mountPath"] == "/etc/videotrain/pod"


def test_two_workers_of_a_run_never_share_a_node() -> None:
    term = worker()["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"]["videotrain.dev/run-uid"] == RUN_UID


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
    assert container(worker())["command"] == ["videotrain-trainer", "agent"]


def test_the_price_of_the_day_travels_with_the_pod() -> None:
    assert worker(pool=POOL)["metadata"]["annotations"] == {"videotrain.dev/price": "2.00 USD"}


def test_a_queue_puts_its_labels_on_the_pod() -> None:
    labels = worker(queue={"name": "team-a", "priorityClass": "high"})["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team-a"
    assert labels["kueue.x-k8s.io/priority-class"] == "high"


def test_team_and_cost_center_are_passed_on() -> None:
    body = manifest()
    body["metadata"]["labels"] = {"videotrain.dev/team": "vision", "videotrain.dev/cost-center": "42", "x": "y"}
    labels = render_pod(run_of(body), 0, "c")["metadata"]["labels"]
    assert labels["videotrain.dev/team"] == "vision" and labels["videotrain.dev/cost-center"] == "42"
    assert "x" not in labels


def test_a_template_adds_to_the_pod_and_cannot_steal_its_identity() -> None:
    template = {
        "metadata": {"name": "mine", "labels": {"a": "b", "videotrain.dev/run": "other"}},
        "spec": {"containers": [{"name": "worker", "resources": {"limits": {"memory": "900Gi"}}}]},
    }
    pod = worker(podTemplate=template)
    assert pod["metadata"]["name"] == "demo-w3" and pod["metadata"]["labels"]["videotrain.dev/run"] == "demo"
    assert pod["metadata"]["labels"]["a"] == "b"
    assert container(pod)["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "900Gi"}


def test_all_objects_belong_to_the_run_and_the_configuration_is_immutable() -> None:
    objects = render_objects(run_of(manifest()))
    assert [item["kind"] for item in objects] == ["Service", "ConfigMap", "Pod", "Pod", "Pod"]
    for item in objects:
        (owner,) = item["metadata"]["ownerReferences"]
        assert owner["uid"] == RUN_UID and owner["controller"] is True
    assert objects[0]["spec"]["clusterIP"] == "None" and objects[0]["spec"]["publishNotReadyAddresses"] is True
    assert objects[1]["immutable"] is True
