"""`videotrain cluster` as a user runs it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.controlplane import pod_manifest, program
from support.processes import processes_below, until

from videotrain.controlplane.tools import kubectl as kubectl_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class ClusterCommand:
    """The command with its directory."""

    def __init__(self, directory):
        self.directory = directory

    def __call__(self, verb, *options):
        command = [sys.executable, "-m", "videotrain", "cluster", verb, "--directory", str(self.directory), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)

    def status(self):
        return json.loads(self("status", "--json").stdout)

    def kubectl(self):
        path = self.status()["cluster"]["kubeconfig"]
        return program(kubectl_program(), {**os.environ, "KUBECONFIG": path})


@pytest.fixture
def cluster(tmp_path):
    command = ClusterCommand(tmp_path / "cluster")
    yield command
    command("down")
    assert processes_below(command.directory) == []


def test_a_cluster_comes_stays_and_goes(cluster):
    came = cluster("up", "--detach", "--nodes", "2", "--gpus-per-node", "3")
    assert came.returncode == 0, came.stderr
    status = cluster.status()
    assert f"export KUBECONFIG={status['cluster']['kubeconfig']}" in came.stdout
    assert "devices: the CPU (CUDA_VISIBLE_DEVICES names no GPU)\n" in came.stdout
    assert [(node["ready"], node["gpus"]) for node in status["state"]["nodes"]] == [(True, 3), (True, 3)]
    assert all(status["state"]["components"].values())
    again = cluster("up", "--detach")
    assert again.returncode == 2
    assert f"a cluster runs here (process {status['process']})" in again.stderr
    a_pod_reaches_the_object_store(cluster.kubectl())

    os.kill(status["process"], signal.SIGKILL)
    until(lambda: not processes_below(cluster.directory), "everything of a killed cluster ends by itself")
    assert cluster("status").returncode == 1

    assert cluster("up", "--detach", "--nodes", "1").returncode == 0
    assert cluster.kubectl()("get", "configmap", "note", "-o", "jsonpath={.data.kept}").stdout == "yes"
    gone = cluster("down")
    assert gone.stdout == f"The cluster of {cluster.directory} is down.\n"
    assert processes_below(cluster.directory) == []


def a_pod_reaches_the_object_store(kubectl):
    code = "import boto3; boto3.client('s3').put_object(Bucket='videotrain', Key='greeting', Body=b'hello')"
    container = {"command": ["python", "-c", code], "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = pod_manifest("writer", "default", restartPolicy="Never", container=container)
    kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    kubectl("wait", "pod/writer", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    kubectl("create", "configmap", "note", "--from-literal=kept=yes")


def test_ctrl_c_ends_a_cluster_in_the_foreground(cluster):
    command = [
        sys.executable,
        "-m",
        "videotrain",
        "cluster",
        "up",
        "--nodes",
        "1",
        "--directory",
        str(cluster.directory),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "The cluster is ready. Type:\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    assert processes_below(cluster.directory) == []
