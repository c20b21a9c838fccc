"""Process nodes beside a real API server, scheduler and controller manager."""

import asyncio
import json
import urllib.request

import psutil
import pytest
from support.process_nodes import PATIENCE, ProcessNodes, until

from videotrain.controlplane.settings import NodeMonitoring, Settings

SETTINGS = Settings(nodes=NodeMonitoring(period_seconds=1, grace_seconds=8, toleration_seconds=2))
pytestmark = pytest.mark.parametrize("control_plane", [SETTINGS], indirect=True, scope="session", ids=["impatient"])

SLEEP = "import time; print('up', flush=True); time.sleep(100000)"
POLITE = (
    "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(100000)"
)
STUBBORN = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(100000)"
HTTP = ["sh", "-c", "exec python -m http.server 8080 --bind $POD_IP"]
POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
STAY = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute"}
    for key in ("not-ready", "unreachable")
]


@pytest.fixture
def nodes(control_plane, tmp_path):
    nodes = ProcessNodes(control_plane, tmp_path / "nodes")
    try:
        nodes.start()
        yield nodes
    finally:
        nodes.clean()
        for name in nodes.names:
            control_plane.api().text("DELETE", f"/api/v1/nodes/{name}")


class Bench:
    """Makes pods in a namespace and waits for what becomes of them."""

    def __init__(self, admin, namespace, nodes):
        self.admin, self.namespace, self.nodes = admin, namespace, nodes

    def template(self, code=SLEEP, *, container=None, spec=None):
        body = {"name": "main", "image": "image", "command": ["python", "-S", "-c", code], **(container or {})}
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 20, **(spec or {})}
        return {"containers": [body], "nodeSelector": {"kubernetes.io/os": "linux"}, **spec}

    async def pod(self, name, code=SLEEP, *, metadata=None, **parts):
        head = {"name": name, "namespace": self.namespace, **(metadata or {})}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": self.template(code, **parts)}
        return await self.admin.create(manifest, "test")

    async def deployment(self, name, template, replicas=1):
        labels = {"app": name}
        spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}
        spec["template"]["spec"] = template
        head = {"name": name, "namespace": self.namespace}
        await self.admin.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": head, "spec": spec}, "test")

    async def pods(self, prefix=""):
        found = await self.admin.list("Pod", self.namespace)
        return [pod for pod in found if pod["metadata"]["name"].startswith(prefix)]

    async def wait(self, name, condition):
        """The pod once it fits; condition gets None when it is gone."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = next(iter(await self.pods(name)), None)
                if condition(found):
                    return found
                await asyncio.sleep(0.1)

    async def running(self, name):
        pod = await self.wait(name, phase("Running"))
        log = self.nodes.workdir / "logs" / f"{name}-{pod['metadata']['uid'][:8]}.log"
        until(lambda: "up" in log.read_text(), f"output of {name}")
        return pod


@pytest.fixture
def bench(admin, namespace, nodes):
    return Bench(admin, namespace, nodes)


def phase(*names):
    return lambda pod: pod is not None and pod["status"]["phase"] in names


def container(pod):
    return (pod or {}).get("status", {}).get("containerStatuses", [{}])[0]


def waiting(reason):
    return lambda pod: container(pod).get("state", {}).get("waiting", {}).get("reason") == reason


def terminated(pod):
    return container(pod)["state"]["terminated"]


def condition(body, type_):
    return next((item for item in body["status"].get("conditions", []) if item["type"] == type_), {})


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_deployment_with_a_readiness_probe_becomes_available_and_its_service_leads_to_it(
    bench, kubectl, namespace
):
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    ports = [{"name": "http", "containerPort": 8080}]
    web = {"command": HTTP, "env": [POD_IP], "ports": ports, "readinessProbe": probe}
    await bench.deployment("web", bench.template(container=web, spec={"restartPolicy": "Always"}), replicas=2)
    kubectl("-n", namespace, "rollout", "status", "deployment/web", f"--timeout={PATIENCE:g}s", timeout=2 * PATIENCE)
    kubectl("-n", namespace, "expose", "deployment/web", "--port=80", "--target-port=8080")
    found = ["-n", namespace, "get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o", "json"]

    def addresses():
        slices = json.loads(kubectl(*found).stdout)["items"]
        ready = [end for part in slices for end in part.get("endpoints") or [] if end["conditions"]["ready"]]
        return len(ready) == 2 and [end["addresses"][0] for end in ready]

    for address in until(addresses, "two ready endpoints"):
        assert urllib.request.urlopen(f"http://{address}:8080/", timeout=30).status == 200


async def test_a_pod_that_exits_3_has_failed_and_its_status_says_why_and_where_the_log_is(bench, nodes):
    code = "import sys; print('what went wrong', flush=True); sys.exit(3)"
    await bench.pod("p", code, container={"terminationMessagePolicy": "FallbackToLogsOnError"})
    pod = await bench.wait("p", phase("Failed", "Succeeded"))
    state = terminated(pod)
    assert (pod["status"]["phase"], state["exitCode"], state["reason"]) == ("Failed", 3, "Error")
    assert state["startedAt"] <= state["finishedAt"]
    assert state["message"] == "what went wrong\n"
    log = pod["status"]["message"].rpartition(" ")[2]
    assert log.startswith(str(nodes.workdir / "logs"))
    assert condition(pod, "PodScheduled")["status"] == "True"
    assert [condition(pod, name)["status"] for name in ("Initialized", "ContainersReady", "Ready")] == [
        "True", "False", "False",
    ]  # fmt: skip
    assert not container(pod)["ready"] and container(pod)["imageID"]
    assert pod["status"]["podIPs"] == [{"ip": pod["status"]["podIP"]}]


async def test_deletion_asks_first_kills_at_the_deadline_and_kills_at_once_when_forced(bench, admin, namespace, nodes):
    await bench.pod("polite", POLITE, metadata={"finalizers": ["test/keep"]})
    await bench.pod("stubborn", STUBBORN, metadata={"finalizers": ["test/keep"]})
    for name in ("polite", "stubborn"):
        await bench.running(name)
    await admin.delete("Pod", namespace, "polite")
    await admin.delete("Pod", namespace, "stubborn", grace_seconds=2)
    polite = await bench.wait("polite", phase("Failed", "Succeeded"))
    stubborn = await bench.wait("stubborn", phase("Failed", "Succeeded"))
    assert (polite["status"]["phase"], terminated(polite)["exitCode"]) == ("Succeeded", 0)
    assert (stubborn["status"]["phase"], terminated(stubborn)["exitCode"]) == ("Failed", 137)
    for name in ("polite", "stubborn"):
        await admin.patch("Pod", namespace, name, {"metadata": {"finalizers": None}})
        await bench.wait(name, lambda pod: pod is None)
    await bench.pod("forced", STUBBORN)
    await bench.running("forced")
    pid = nodes.pods()["forced"]["pid"]
    await admin.delete("Pod", namespace, "forced", grace_seconds=0)
    until(lambda: gone(pid))
    until(lambda: not list((nodes.workdir / "pods").iterdir()), "directories of deleted pods are removed")


async def test_an_annotation_arrives_as_a_file_while_the_pod_runs(bench, admin, namespace, nodes):
    item = {"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['example.com/note']"}}
    mounts = {"volumeMounts": [{"name": "pod", "mountPath": "/etc/pod"}]}
    spec = {"volumes": [{"name": "pod", "downwardAPI": {"items": [item]}}]}
    await bench.pod("p", container=mounts, spec=spec)
    await bench.running("p")
    note = nodes.workdir / "pods" / nodes.pods()["p"]["root"].rpartition("/")[2] / "etc/pod/note"
    assert note.read_text() == ""
    await admin.patch("Pod", namespace, "p", {"metadata": {"annotations": {"example.com/note": "[1]"}}})
    until(lambda: note.read_text() == "[1]")


WHO = """
import asyncio, json, os
from videotrain_operator.kube.client import connect
async def main():
    async with connect() as client:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        told = await client.raw("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    user = told["status"]["userInfo"]
    print(json.dumps({"user": user["username"], "pod": user["extra"]["authentication.kubernetes.io/pod-name"],
        "env": {name: os.environ.get(name) for name in ("FROM_CONFIG", "FROM_SECRET", "ALL_a", "OF_NODE", "IP",
        "VIDEOTRAIN_POD_IP", "HOSTNAME")}}))
asyncio.run(main())
"""


async def test_a_pod_reaches_the_api_server_as_its_service_account_and_has_its_environment(
    control_plane, bench, admin, namespace, tmp_path
):
    nodes = ProcessNodes(control_plane, tmp_path / "more", count=1, env=["OF_NODE=yes", "FROM_CONFIG=overridden"])
    try:
        nodes.start()
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"b": "2"}}
        await admin.create(config, "test", namespace)
        await admin.create(secret, "test", namespace)
        env = [
            {"name": "FROM_CONFIG", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}},
            {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "b"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ]
        parts = {"command": ["python", "-c", WHO], "env": env}
        parts["envFrom"] = [{"prefix": "ALL_", "configMapRef": {"name": "c"}}]
        selector = {"nodeSelector": {"kubernetes.io/hostname": nodes.names[0]}}
        await bench.pod("who", container=parts, spec=selector)
        pod = await bench.wait("who", phase("Succeeded", "Failed"))
        log = nodes.workdir / "logs" / f"who-{pod['metadata']['uid'][:8]}.log"
        assert pod["status"]["phase"] == "Succeeded", log.read_text()
        told = json.loads(log.read_text())
    finally:
        nodes.clean()
        await admin.delete("Node", "", nodes.names[0])
    assert (told["user"], told["pod"]) == (f"system:serviceaccount:{namespace}:default", ["who"])
    ip = pod["status"]["podIP"]
    given = {"FROM_CONFIG": "1", "FROM_SECRET": "2", "ALL_a": "1", "OF_NODE": "yes"}
    given |= {"IP": ip, "VIDEOTRAIN_POD_IP": ip, "HOSTNAME": "who"}
    assert told["env"] == given


async def test_each_pod_sees_gpus_of_its_own_and_an_ended_pod_frees_them(control_plane, bench, admin, tmp_path):
    nodes = ProcessNodes(control_plane, tmp_path / "gpus", count=1, gpus=2, devices=("6", "7"))
    seen = "import os,sys; sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] not in sys.argv[1:])"
    selector = {"nodeSelector": {"kubernetes.io/hostname": nodes.names[0]}}

    def asking(gpus, *allowed):
        limits = {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}
        return {"command": ["python", "-S", "-c", seen, *allowed], "resources": limits}

    try:
        nodes.start()
        for name, container in [("both", asking(2, "6,7")), ("one", asking(1, "6", "7")), ("none", asking(0, ""))]:
            await bench.pod(name, container=container, spec=selector)
        for name in ("both", "one", "none"):
            pod = await bench.wait(name, phase("Succeeded", "Failed"))
            assert pod["status"]["phase"] == "Succeeded", f"{name} saw other GPUs"
    finally:
        nodes.clean()
        await admin.delete("Node", "", nodes.names[0])


async def test_images_that_cannot_be_had_and_volumes_that_are_refused_keep_a_pod_waiting(bench, kubectl, namespace):
    await bench.pod("image", container={"image": "invalid/whatever:1"})
    await bench.pod("host", spec={"volumes": [{"name": "v", "hostPath": {"path": "/etc"}}]})
    for reason in ("ErrImagePull", "ImagePullBackOff"):
        assert (await bench.wait("image", waiting(reason)))["status"]["phase"] == "Pending"
    pod = await bench.wait("host", waiting("CreateContainerConfigError"))
    assert "type 'hostPath' is refused" in container(pod)["state"]["waiting"]["message"]

    def events():
        return kubectl("-n", namespace, "get", "events", "-o", "jsonpath={.items[*].message}").stdout

    until(lambda: "type 'hostPath' is refused" in events())
    kubectl("-n", namespace, "set", "image", "pod/image", "main=image:2")
    await bench.wait("image", phase("Running"))


async def test_a_container_can_be_made_to_end_for_a_named_reason(bench, namespace, nodes):
    await bench.pod("p")
    await bench.running("p")
    nodes.order("kill-pod", namespace=namespace, pod="p", exitCode=137, reason="OOMKilled")
    state = terminated(await bench.wait("p", phase("Failed")))
    assert (state["exitCode"], state["reason"]) == (137, "OOMKilled")


async def test_init_containers_run_first_and_a_failing_container_is_started_again(bench):
    script = {"name": "first", "image": "image", "command": ["sh", "-c", "echo made > $VIDEOTRAIN_POD_ROOT/shared/f"]}
    script["volumeMounts"] = [{"name": "v", "mountPath": "/shared"}]
    code = (
        "import os,pathlib,sys; p = pathlib.Path(os.environ['VIDEOTRAIN_POD_ROOT'], 'work/f'); t = p.read_text();"
        "p.write_text(t + 'again'); sys.exit(0 if t.count('again') == 2 else 9)"
    )
    spec = {"initContainers": [script], "volumes": [{"name": "v", "emptyDir": {}}], "restartPolicy": "OnFailure"}
    await bench.pod("p", code, container={"volumeMounts": [{"name": "v", "mountPath": "/work"}]}, spec=spec)
    await bench.wait("p", waiting("CrashLoopBackOff"))
    pod = await bench.wait("p", phase("Succeeded", "Failed"))
    assert (pod["status"]["phase"], container(pod)["restartCount"]) == ("Succeeded", 2)
    assert container(pod)["lastState"]["terminated"]["exitCode"] == 9
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0


SICK = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if Handler.asked < 3 else 500)
        self.end_headers()
http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""


async def test_a_failing_liveness_probe_restarts_the_container(bench):
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    startup = {**probe, "failureThreshold": 60}
    parts = {"env": [POD_IP], "livenessProbe": probe, "startupProbe": startup, "command": ["python", "-c", SICK]}
    await bench.pod("p", container=parts, spec={"restartPolicy": "Always"})
    pod = await bench.wait("p", lambda pod: container(pod).get("restartCount", 0) >= 1)
    assert container(pod)["lastState"]["terminated"]["exitCode"] == 143


async def test_a_node_without_power_falls_silent_and_the_real_controllers_move_its_pods(bench, admin, nodes):
    template = bench.template(spec={"restartPolicy": "Always"})
    await bench.deployment("app", template)
    pod = await bench.wait("app", phase("Running"))
    victim, pid = pod["spec"]["nodeName"], nodes.pods()[pod["metadata"]["name"]]["pid"]
    nodes.order("kill-node", node=victim)
    assert gone(pid)

    async def unknown():
        return condition(await admin.get("Node", "", victim), "Ready")["status"] == "Unknown"

    async with asyncio.timeout(PATIENCE):
        while not await unknown():
            await asyncio.sleep(0.2)
    old = await bench.wait(pod["metadata"]["name"], lambda pod: "deletionTimestamp" in pod["metadata"])
    assert condition(old, "DisruptionTarget")["reason"] == "DeletionByTaintManager"
    assert "running" in container(old)["state"], "nobody is there to report the end"

    async with asyncio.timeout(PATIENCE):
        while not [p for p in await bench.pods("app") if p["spec"].get("nodeName") not in (None, victim)]:
            await asyncio.sleep(0.2)
    nodes.order("restore-node", node=victim)
    await bench.wait(pod["metadata"]["name"], lambda pod: pod is None)
    ready = condition(await admin.get("Node", "", victim), "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "KubeletReady")


async def test_a_deleted_node_ends_its_pods_and_stays_away_until_it_is_restored(bench, admin, nodes):
    await bench.pod("p", STUBBORN)
    pod = await bench.running("p")
    name, pid = pod["spec"]["nodeName"], nodes.pods()["p"]["pid"]
    await admin.delete("Node", "", name)
    until(lambda: gone(pid))
    await bench.wait("p", lambda pod: pod is None)
    assert name not in [node["metadata"]["name"] for node in await admin.list("Node")]
    nodes.order("restore-node", node=name)
    await bench.pod("q", spec={"nodeSelector": {"kubernetes.io/hostname": name}})
    await bench.running("q")


async def test_pods_run_on_while_the_api_server_is_away_and_an_end_meanwhile_is_not_lost(
    control_plane, bench, nodes, tmp_path
):
    flag = tmp_path / "flag"
    code = f"import pathlib,time\nwhile not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.1)\nraise SystemExit(7)"
    await bench.pod("stays", spec={"tolerations": STAY})
    await bench.pod("ends", code, spec={"tolerations": STAY})
    await bench.running("stays")
    await bench.wait("ends", phase("Running"))
    before = nodes.pods()
    control_plane.pause("kube-apiserver")
    try:
        flag.touch()
        until(lambda: gone(before["ends"]["pid"]))
        await asyncio.sleep(20)  # the outage itself
        assert nodes.pods()["stays"]["pid"] == before["stays"]["pid"]
    finally:
        control_plane.resume("kube-apiserver")
    ended = await bench.wait("ends", phase("Failed"))
    assert terminated(ended)["exitCode"] == 7
    stays = await bench.wait("stays", phase("Running"))
    assert (container(stays)["restartCount"], nodes.pods()["stays"]["pid"]) == (0, before["stays"]["pid"])


async def test_no_child_survives_a_sigkill_and_the_next_life_reports_how_the_pods_ended(bench, nodes):
    await bench.pod("once", STUBBORN, spec={"tolerations": STAY})
    again = {"restartPolicy": "Always", "tolerations": STAY}
    await bench.pod("always", STUBBORN, spec=again)
    for name in ("once", "always"):
        await bench.running(name)
    assert nodes.children()
    nodes.kill()
    until(lambda: not nodes.children(), "no process is left")
    nodes.start()
    once = await bench.wait("once", phase("Failed"))
    assert (once["status"]["reason"], terminated(once)["exitCode"]) == ("NodeLost", 137)
    always = await bench.wait("always", lambda pod: container(pod)["restartCount"] == 1)
    assert container(always)["lastState"]["terminated"]["exitCode"] == 137
    assert nodes.stop() == 0
    assert nodes.children() == []
