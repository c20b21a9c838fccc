"""The control plane is a real one, keeps what it holds, and leaves nothing behind."""

import signal
import socket
import subprocess
import sys

import psutil
import pytest
import yaml
from support import plane_owner
from support.controlplane import ROOT, environment, pod_manifest, program
from support.plane_objects import create_namespace, delete_nodes
from support.processes import processes_below, until

from videotrain.controlplane.errors import ControlPlaneError, RequestError
from videotrain.controlplane.kwok import create_nodes, node_names
from videotrain.controlplane.plane import ControlPlane
from videotrain.controlplane.tools import kubectl as kubectl_program
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.client import ApiError, connect

EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


def test_it_is_ready_and_says_its_version(control_plane, kubectl):
    assert control_plane.api().text("GET", "/readyz") == (200, "ok")
    said = kubectl("version").stdout
    assert "Server Version: v1.37.1" in said
    assert "Client Version: v1.37." in said


def test_helm_installs_into_it(helm, kubectl, namespace, tmp_path):
    assert helm("version", "--short").stdout.startswith("v4.3.")
    chart = tmp_path / "toy"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: toy, version: 0.1.0}")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "toy"}, "data": {"a": "b"}}
    (chart / "templates" / "config.yaml").write_text(yaml.safe_dump(config))
    helm("install", "toy", str(chart), "--namespace", namespace)
    assert kubectl("get", "configmap", "toy", "-n", namespace, "-o", "jsonpath={.data.a}").stdout == "b"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_it_accepts_every_example(kubectl, namespace, path):
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    said = kubectl("apply", "--dry-run=server", "-n", namespace, "-f", str(path)).stdout
    assert said.strip() == f"videotrainingrun.videotrain.dev/{name} created (server dry run)"


def test_it_refuses_a_broken_manifest(kubectl, namespace, tmp_path):
    manifest = yaml.safe_load(EXAMPLES[0].read_text())
    manifest["spec"]["stages"] = "none"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(manifest))
    done = kubectl("apply", "--dry-run=server", "-n", namespace, "-f", str(tmp_path / "run.yaml"), check=False)
    assert done.returncode == 1
    assert "spec.stages" in done.stderr


def test_a_user_has_no_rights_but_those_that_are_given(control_plane, kubectl, namespace):
    tester = program(kubectl_program(), environment(control_plane, "tester"))
    refused = tester("get", "pods", "-n", namespace, check=False)
    assert refused.returncode == 1
    assert 'User "tester" cannot list resource "pods"' in refused.stderr
    kubectl("create", "rolebinding", "tester", "--clusterrole=view", "--user=tester", "-n", namespace)
    until(lambda: tester("get", "pods", "-n", namespace, check=False).returncode == 0, "the binding is seen")
    assert tester("get", "nodes", check=False).returncode == 1


async def test_a_service_account_is_known_by_its_token(control_plane, admin, namespace):
    with pytest.raises(RequestError, match="not found"):
        control_plane.service_account(namespace, "absent")
    async with connect(str(control_plane.service_account(namespace, "default"))) as client:
        with pytest.raises(ApiError, match=f"system:serviceaccount:{namespace}:default") as refused:
            await client.list("Pod", namespace)
    assert refused.value.status == 403
    names = [item["metadata"]["name"] for item in await admin.list("ServiceAccount", namespace)]
    assert names == ["default"]


async def test_fake_nodes_run_pods_and_let_them_go(control_plane, admin, namespace):
    names = node_names(3, f"k-{namespace}")
    labels = {"pool": namespace}
    create_nodes(control_plane.api(), names, labels=labels)
    try:
        limits = {"resources": {"limits": {"nvidia.com/gpu": "8"}}}
        for index in range(4):
            pod = pod_manifest(f"p{index}", namespace, nodeSelector=labels, container=limits)
            await admin.create(pod, "test")

        def phases():
            pods = control_plane.api().get(f"/api/v1/namespaces/{namespace}/pods")["items"]
            return sorted(pod["status"]["phase"] for pod in pods)

        until(lambda: phases() == ["Pending", "Running", "Running", "Running"], "three nodes run three pods")
        addresses = {pod["status"].get("podIP") for pod in await admin.list("Pod", namespace)} - {None}
        assert len(addresses) == 3
        assert all(address.startswith("10.1") for address in addresses)
        running = next(pod for pod in await admin.list("Pod", namespace) if pod["status"]["phase"] == "Running")
        await admin.delete("Pod", namespace, running["metadata"]["name"])
        until(lambda: phases() == ["Running", "Running", "Running"], "the fourth pod takes the place")
        with pytest.raises(NotFound):
            await admin.get("Pod", namespace, running["metadata"]["name"])
    finally:
        delete_nodes(control_plane, names)


@pytest.mark.slow
def test_it_survives_a_killed_owner_and_its_own_outages(tmp_path):
    directory = tmp_path / "plane"
    owner = subprocess.Popen([sys.executable, plane_owner.__file__, str(directory)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "ready\n"
    assert len(processes_below(directory)) >= 8  # four components under a supervisor each
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    until(lambda: not processes_below(directory), "everything of a killed owner ends by itself")
    with ControlPlane(directory) as plane:
        before = plane.kubeconfig().read_text()
        api = plane.api()
        assert api.get("/api/v1/namespaces/kept")["metadata"]["name"] == "kept"
        create_namespace(plane, "fresh")  # controllers work by now; while they start they do not bear an outage
        api_server_goes_and_comes(plane)
        paused_scheduler_binds_nothing(plane)
        scheduler_that_lost_its_supervisor_ends_with_the_plane(plane)
        assert yaml.safe_load(plane.kubeconfig().read_text())["clusters"] == yaml.safe_load(before)["clusters"]
    assert processes_below(directory) == []


def api_server_goes_and_comes(plane):
    api = plane.api()
    plane.kill("kube-apiserver")
    with pytest.raises(OSError):
        api.get("/version")
    with pytest.raises(ControlPlaneError, match="kube-apiserver ended by itself"):
        plane.check()
    plane.start("kube-apiserver")
    assert api.get("/api/v1/namespaces/kept")["metadata"]["name"] == "kept"
    plane.check()


def paused_scheduler_binds_nothing(plane):
    create_nodes(plane.api(), ["node"])
    (scheduler,) = (component for component in plane.components if component.name == "kube-scheduler")
    plane.pause("kube-scheduler")
    until(lambda: psutil.Process(scheduler.pid).status() == psutil.STATUS_STOPPED, "the scheduler stands still")
    path = "/api/v1/namespaces/kept/pods"
    plane.api().request("POST", path, pod_manifest("waits", "kept"))
    assert "nodeName" not in plane.api().get(f"{path}/waits")["spec"]
    plane.resume("kube-scheduler")
    until(lambda: plane.api().get(f"{path}/waits")["spec"].get("nodeName") == "node", "the pod is bound")


def scheduler_that_lost_its_supervisor_ends_with_the_plane(plane):
    (scheduler,) = (component for component in plane.components if component.name == "kube-scheduler")
    program = psutil.Process(scheduler.pid)
    program.parent().kill()
    until(lambda: not scheduler.running, "the loss of the supervisor is seen")
    assert program.is_running()


@pytest.mark.slow
def test_a_taken_port_is_replaced(monkeypatch, tmp_path):
    with ControlPlane(tmp_path / "plane") as plane:
        address = plane.server
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        taken.listen()
        # As if the other program had come between our look and the start.
        monkeypatch.setattr("videotrain.controlplane.plane.port_is_free", lambda host, port: True)
        with plane:
            assert plane.server != address
            assert plane.api().text("GET", "/readyz")[0] == 200
            assert yaml.safe_load(plane.kubeconfig().read_text())["clusters"][0]["cluster"]["server"] == plane.server


def test_unknown_components_and_users_are_refused(control_plane):
    with pytest.raises(ControlPlaneError, match="no component 'kubelet' here; there are: etcd, kube-apiserver"):
        control_plane.kill("kubelet")
    with pytest.raises(ControlPlaneError, match="1 to 64 characters"):
        control_plane.kubeconfig("x" * 65)
